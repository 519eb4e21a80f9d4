"""Whether Prefect's server answers, and how to do without it."""

import socket
from contextlib import AbstractContextManager
from urllib.parse import urlsplit

from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    Settings,
    temporary_settings,
)

STARTUP_SECONDS = 180  # a busy machine took longer than the 20 s that Prefect gives its server


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
    own = {PREFECT_API_URL: None, PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: STARTUP_SECONDS}
    return temporary_settings(updates={} if server_answers() else own)
