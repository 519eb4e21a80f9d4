"""What a launcher tells the processes that it starts together, read without loading anything."""

import os


def first_process() -> bool:
    """Whether this process writes and speaks: of several that a launcher has started, the first alone does."""
    return os.environ.get("RANK", "0") == "0"
