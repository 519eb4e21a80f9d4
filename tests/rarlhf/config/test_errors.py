import socket

import httpx
import pytest
import requests

from rarlhf.config.errors import PassingError, UserError, may_pass


def caused(error: Exception, cause: Exception, hidden: bool = False) -> Exception:
    """The error as it is raised from, or while handling, its cause."""
    try:
        try:
            raise cause
        except Exception as known:
            if hidden:
                raise error from None
            raise error from (known if isinstance(cause, OSError) else None)
    except Exception as raised:
        return raised


@pytest.mark.parametrize(
    "error",
    [
        PassingError("no answer"),
        ConnectionResetError(),
        TimeoutError(),
        socket.gaierror(-3, "Temporary failure in name resolution"),
        requests.exceptions.ConnectionError(),
        requests.exceptions.ReadTimeout(),
        httpx.ConnectError(""),
        caused(RuntimeError("cannot load"), ConnectionRefusedError()),
    ],
)
def test_networks_may_pass(error: Exception) -> None:
    assert may_pass(error)


@pytest.mark.parametrize(
    "error",
    [
        UserError("Connection refused"),
        ValueError("Connection timed out"),
        FileNotFoundError("Temporary failure in name resolution"),
        requests.exceptions.HTTPError("404"),
        requests.exceptions.InvalidURL(),
        httpx.InvalidURL(""),
        caused(UserError("not there on the hub"), ConnectionResetError()),  # judged where it was raised
        caused(ValueError(), ConnectionResetError(), hidden=True),
    ],
)
def test_faults_do_not(error: Exception) -> None:
    assert not may_pass(error)


def test_a_circle_of_causes_ends() -> None:
    one, other = ValueError(), KeyError()
    one.__context__, other.__context__ = other, one
    assert not may_pass(one)
