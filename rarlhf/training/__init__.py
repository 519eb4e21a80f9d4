"""One file for each way to make a model, from params and folders to a folder; algorithms live in rooms of their own."""
