"""The one error a user is meant to read: what is wrong, where, and how to mend it."""


class UserError(Exception):
    """Bad input or circumstances that the user can mend; its text is printed alone, without a traceback."""
