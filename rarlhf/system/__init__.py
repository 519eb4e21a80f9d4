"""The machine and its processes, signals and files; nothing here knows a model or a text."""
