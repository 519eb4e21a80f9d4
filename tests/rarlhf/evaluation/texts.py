"""Texts that try to change how a page is displayed -> how they are shown."""

HOSTILE = {
    "\u202eoverride": "\\u202eoverride",  # right-to-left override, never closed
    "\u2067isolate\u200b": "\\u2067isolate\\u200b",  # a zero-width space behind it
    "\x1b[31mred\x07\x9b2J": "\\x1b[31mred\\x07\\x9b2J",
    "null\x00\ud800": "null\\x00\\ud800",
    "one\r\ntwo\u2028three": "one\\r\ntwo\\u2028three",
    "tag\U000e0041": "tag\\U000e0041",
    "می\u200cخواهم 👩\u200d👧\u00a0é": "می\u200cخواهم 👩\u200d👧\u00a0é",  # joiners that scripts and signs need
}
