"""Rows of labelled text: where they come from, how they are read, and the generator's world with its oracle."""
