"""Errors for users, which say what is wrong, where, and how to mend it; and which errors are worth another try."""

import sys
from collections.abc import Iterator

PASSING_STATUS = 75  # exit status after an error that is worth another try (EX_TEMPFAIL in sysexits.h)
NETWORK_ERRORS = (  # by module and name, so that no library has to be imported
    ("requests.exceptions", "ConnectionError"),
    ("requests.exceptions", "Timeout"),
    ("requests.exceptions", "ChunkedEncodingError"),
    ("httpx", "TransportError"),
    ("httpx2", "TransportError"),
    ("urllib3.exceptions", "HTTPError"),
    ("aiohttp", "ClientConnectionError"),
    ("aiohttp", "ClientPayloadError"),
)


class UserError(Exception):
    """Bad input or circumstances that the user can mend; its text is printed alone, without a traceback."""


class PassingError(UserError):
    """A `UserError` that may not happen again a little later, such as a failed network read."""


def may_pass(error: BaseException) -> bool:
    """Whether the same call may succeed a little later: a network or another process failed, not the request itself.

    The classes of the error and of its causes decide, not their texts.
    """
    if isinstance(error, UserError):
        return isinstance(error, PassingError)
    known: tuple[type[BaseException], ...] = (ConnectionError, TimeoutError, *_loaded())
    return any(isinstance(cause, known) or _unresolved(cause) for cause in _causes(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, its cause, the cause of that, and so on."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def _loaded() -> Iterator[type[BaseException]]:
    """The classes of `NETWORK_ERRORS` whose module is loaded."""
    for module, name in NETWORK_ERRORS:
        if module in sys.modules:
            yield getattr(sys.modules[module], name)


def _unresolved(error: BaseException) -> bool:
    """Whether a host name could not be resolved."""
    socket = sys.modules.get("socket")
    return socket is not None and isinstance(error, socket.gaierror)
