"""Text from outside, written so that it cannot control a terminal."""


def one_line(text: str) -> str:
    """The text in one line: line ends, tabs and other control characters become escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def safe(text: str) -> str:
    """The text with its line ends; other control characters become escapes."""
    return "\n".join(one_line(line) for line in text.split("\n"))
