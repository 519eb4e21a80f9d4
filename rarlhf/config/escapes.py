"""Text from outside as one line that cannot steer a terminal."""


def one_line(text: str) -> str:
    """The text with line ends, tabs and whatever else would steer a terminal written as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def safe(text: str) -> str:
    """The text with line ends as they are and whatever else would steer a terminal written as escapes."""
    return "\n".join(one_line(line) for line in text.split("\n"))
