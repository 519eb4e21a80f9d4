"""Prefect's server behind a gate: it answers its own pages and programs of this machine, and no other web page.

Prefect's own server lets pages of every origin use its API, under every host name, websockets included. Its settings
(prefect.toml) forbid other origins; the gate checks the host name and the origin of every request of every kind.
`prefect server start` has no place for a gate: it starts Prefect's application by its name.

    python -m flows.serving.gate --host 127.0.0.1 --port 4200
"""

import argparse
import ipaddress
import re
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")  # at any port: a tunnel from another machine has its own
NOWHERE = "http://127.0.0.1:9"  # nothing listens at the port `discard`
POLICY = (  # the pages load from their own server alone, and no other page shows them in a frame
    "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'none'; form-action 'self'"
)
_PORT = re.compile(r":\d+\Z")


class Gate:
    """Refuses requests to a host name that is not the server's, and requests of pages that it did not serve.

    A page of another origin can send requests to a server on the user's machine. It can read the answers if its own
    name was made to mean this machine (DNS rebinding). Programs send no origin.

    Args:
        app: answers the other requests.
        hosts: names and addresses of the server, besides those of `LOOPBACK`.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str] = ()) -> None:
        self._app = app
        self._hosts = frozenset([*map(_bracketed, hosts), *LOOPBACK])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request (ASGI)."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        told = self._refusal(Headers(scope=scope))
        if told and scope["type"] == "websocket":
            await WebSocketClose(1008, told)(scope, receive, send)
        elif told:
            await PlainTextResponse(told, 403)(scope, receive, send)
        else:
            await self._app(scope, receive, _with_policy(send))

    def _refusal(self, headers: Headers) -> str:
        """Why a request is refused; empty where it is not."""
        host, origin = headers.get("host", ""), headers.get("origin")
        if _PORT.sub("", host) not in self._hosts:
            return f"this server is not {host}"
        if origin not in (None, f"http://{host}"):
            return f"no answer to pages of {origin}"
        return ""


def _with_policy(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["Content-Security-Policy"] = POLICY
        await send(message)

    return sending


def _bracketed(host: str) -> str:
    try:
        return f"[{host}]" if ipaddress.ip_address(host).version == 6 else host
    except ValueError:
        return host


def main() -> None:
    """Runs the server until a signal ends it."""
    parser = argparse.ArgumentParser("python -m flows.serving.gate", description="Prefect's server behind a gate.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at")
    parser.add_argument("--port", type=int, required=True, help="port to listen at")
    options = parser.parse_args()

    import uvicorn
    from prefect.server.api import collections
    from prefect.server.api.server import create_app
    from prefect.settings import get_current_settings

    from flows.serving.server import address

    # Prefect asks GitHub for these lists; where that fails it takes those of its own package.
    collections.KNOWN_VIEWS.update(dict.fromkeys(collections.KNOWN_VIEWS, NOWHERE))
    settings = get_current_settings().server
    uvicorn.run(
        Gate(create_app(final=True), [options.host, address()[0]]),
        host=options.host,
        port=options.port,
        timeout_keep_alive=settings.api.keepalive_timeout,
        log_level=settings.logging_level.lower(),
    )


if __name__ == "__main__":
    main()
