"""Whether Prefect's server answers, and how to do without it."""

import socket
from contextlib import AbstractContextManager
from urllib.parse import urlsplit

from prefect.settings import PREFECT_API_URL, Settings, temporary_settings


def server_answers() -> bool:
    """Whether something listens at the address that Prefect is set up with (prefect.toml)."""
    url = urlsplit(PREFECT_API_URL.value() or "")
    try:
        socket.create_connection((url.hostname or "", url.port or 4200), timeout=2).close()
    except OSError:
        return False
    return True


def local_settings() -> AbstractContextManager[Settings]:
    """The settings as they are where a server answers; else those by which Prefect starts one for this process."""
    return temporary_settings(updates={} if server_answers() else {PREFECT_API_URL: None})
