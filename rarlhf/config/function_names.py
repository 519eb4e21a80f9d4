"""Names of Python functions that score texts: `python:package.module:function`."""

import re

PREFIX = "python:"
NAME = re.compile(r"python:([^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*)")


def is_function(source: str) -> bool:
    """Whether a scorer's source names a function rather than a model."""
    return source.startswith(PREFIX)


def function_name(source: str) -> tuple[str, str] | None:
    """Module and function of `python:package.module:function`; None if `source` has another form."""
    match = NAME.fullmatch(source)
    return None if match is None else (match[1], match[2])
