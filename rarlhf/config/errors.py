"""The errors a user is meant to read: what is wrong, where, and how to mend it; and which of all errors may pass."""

import sys
from collections.abc import Iterator

PASSING_STATUS = 75  # exit status of what failed by something that may pass (EX_TEMPFAIL of sysexits.h)
NETWORK_ERRORS = (  # of libraries, by name: they are not imported for that
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
    """A `UserError` that may not come again when the same is tried a little later, such as a network read."""


def may_pass(error: BaseException) -> bool:
    """Whether the same may succeed a little later: where a network or another process failed, not the request.

    What the error says does not count, only its kind and the kinds of those it came of. A `UserError` has been
    judged by whoever raised it.
    """
    if isinstance(error, UserError):
        return isinstance(error, PassingError)
    known: tuple[type[BaseException], ...] = (ConnectionError, TimeoutError, *_loaded())
    return any(isinstance(cause, known) or _unresolved(cause) for cause in _causes(error))


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it came of, and so on."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def _loaded() -> Iterator[type[BaseException]]:
    """Those of `NETWORK_ERRORS` whose library is in use."""
    for module, name in NETWORK_ERRORS:
        if module in sys.modules:
            yield getattr(sys.modules[module], name)


def _unresolved(error: BaseException) -> bool:
    """Whether a host name had no address just then."""
    socket = sys.modules.get("socket")
    return socket is not None and isinstance(error, socket.gaierror)
