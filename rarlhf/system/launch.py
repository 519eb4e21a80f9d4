"""What a launcher such as `accelerate launch` tells the processes that it starts; no heavy import is needed."""

import os


def first_process() -> bool:
    """Whether this process writes files and prints; among several processes, only the first does."""
    return os.environ.get("RANK", "0") == "0"
