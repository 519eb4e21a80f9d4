"""This workspace's Prefect server: where it is, whether it answers, how it starts, and how to run without it."""

import json
import os
import secrets
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from urllib.parse import urlsplit

from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_SERVER_API_AUTH_STRING,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    PREFECT_UI_URL,
    Settings,
    temporary_settings,
)

from flows.serving.workspace import HOME
from rarlhf.config.errors import UserError
from tasks.tracking.passwords import without_passwords

STARTUP_SECONDS = 180  # a busy machine took longer than the 20 s that Prefect gives its server
SERVER = ["flows.serving.gate"]  # a module and its arguments


def address() -> tuple[str, int]:
    """Host and port of the server, from Prefect's settings (prefect.toml)."""
    url = urlsplit(PREFECT_API_URL.value() or "")
    return url.hostname or "127.0.0.1", url.port or 4200


def page() -> str:
    """The address of the server's pages."""
    host, port = address()
    return f"http://{host}:{port}"


def server_answers() -> bool:
    """Whether something listens at the server's address."""
    try:
        socket.create_connection(address(), timeout=2).close()
    except OSError:
        return False
    return True


def own_server_answers() -> bool:
    """Whether this workspace's server answers.

    Raises: UserError if something else answers there. Another workspace's server would run that one's deployments.
    """
    if not server_answers():
        return False
    elsewhere = "end it, or give this workspace another port (`url` in prefect.toml)"
    try:
        with urllib.request.urlopen(f"{page()}/api/admin/settings", timeout=20) as answer:
            home = json.load(answer)["home"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"at {page()} something that is not a Prefect server answers; {elsewhere}") from error
    if Path(home).resolve() != Path(HOME).resolve():
        raise UserError(f"at {page()} the Prefect server of another workspace answers ({home}); {elsewhere}")
    return True


def server_command() -> list[str]:
    """The command that starts the server at its address."""
    host, port = address()
    return [sys.executable, "-m", *SERVER, "--host", host, "--port", str(port)]


def environment() -> Mapping[str, str]:
    """The environment for Prefect's commands.

    The home is a full path, by which workspaces tell their servers apart. PWD, which prefect.yaml makes the folder of
    the runs, is set because `make -C` leaves it at another folder. Prefect shows the address of its pages in the log of
    every run, so it is set without the password that the API's address may hold.
    """
    own = {"PREFECT_HOME": str(Path(HOME).resolve()), "PWD": str(Path.cwd()), "DO_NOT_TRACK": "true"}
    return {**os.environ, **own, "PREFECT_UI_URL": _shown_address()}


def local_settings() -> AbstractContextManager[Settings]:
    """The present settings where a server answers; else settings with which Prefect starts one for this process.

    That server has no gate (flows.serving.gate), so it answers only those who know a password that is made up for it.
    """
    if server_answers():
        return temporary_settings(updates={PREFECT_UI_URL: _shown_address()})
    word = f"rarlhf:{secrets.token_urlsafe()}"
    return temporary_settings(
        updates={
            PREFECT_API_URL: None,
            PREFECT_API_AUTH_STRING: word,
            PREFECT_SERVER_API_AUTH_STRING: word,
            PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: STARTUP_SECONDS,
        }
    )


def _shown_address() -> str:
    return without_passwords(PREFECT_UI_URL.value() or page())
