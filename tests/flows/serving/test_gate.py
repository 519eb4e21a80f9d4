import asyncio
from collections.abc import Iterable

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send

from flows.serving.gate import Gate
from flows.serving.server import SERVER, local_settings
from flows.serving.ui import SERVERS

PAGE = "http://127.0.0.1:4200"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Says yes to everything."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"yes"})


def ask(headers: dict[str, str], method: str = "POST", hosts: Iterable[str] = ()) -> int:
    async def request() -> httpx.Response:
        transport = httpx.ASGITransport(app=Gate(app, hosts))
        async with httpx.AsyncClient(transport=transport, base_url=PAGE) as client:
            return await client.request(method, "/api/deployments/", headers=headers)

    answer = asyncio.run(request())
    assert (answer.text == "yes") == (answer.status_code == 200)
    return answer.status_code


def connect(headers: dict[str, str]) -> str:
    """What a websocket gets: the type of the first message."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    asyncio.run(Gate(app)({"type": "websocket", "headers": raw}, receive, send))
    return str(sent[0]["type"])


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_pages_of_other_origins_get_nothing(method: str) -> None:
    assert ask({}, method) == 200  # a program
    assert ask({"Origin": PAGE}, method) == 200
    assert ask({"Host": "localhost:4200", "Origin": "http://localhost:4200"}, method) == 200
    for origin in ("http://evil.example", "null", "", "http://127.0.0.1:8888", "https://127.0.0.1:4200", f"{PAGE}.a.b"):
        assert ask({"Origin": origin}, method) == 403
    assert ask({"Origin": "http://localhost:4200"}, method) == 403  # may be another server, at another address


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:4200", "127.0.0.1.a:4200", "127.0.0.1:a:4200", ":4200", ""]
)
def test_a_foreign_host_name_that_means_this_machine_gets_nothing(host: str) -> None:
    assert ask({"Host": host}) == 403
    assert ask({"Host": host, "Origin": f"http://{host}"}) == 403


def test_websockets_are_looked_at_too() -> None:
    assert connect({"host": "127.0.0.1:4200"}) == "websocket.accept"
    assert connect({"host": "127.0.0.1:4200", "origin": PAGE}) == "websocket.accept"
    assert connect({"host": "127.0.0.1:4200", "origin": "http://evil.example"}) == "websocket.close"
    assert connect({"host": "evil.example:4200"}) == "websocket.close"


def test_the_names_are_those_of_this_machine_and_of_the_address() -> None:
    for host in ("127.0.0.1:8080", "localhost", "[::1]:4200"):  # the first as through a tunnel
        assert ask({"Host": host, "Origin": f"http://{host}"}) == 200
    assert ask({"Host": "127.0.0.1:4200", "Origin": "http://127.0.0.1:8080"}) == 403
    for given, host in (("box.lan", "box.lan:4200"), ("box.lan", "box.lan"), ("fe80::1", "[fe80::1]:4200")):
        assert ask({"Host": host}) == 403
        assert ask({"Host": host, "Origin": f"http://{host}"}, hosts=[given]) == 200


def test_pages_load_from_their_own_server_alone() -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request"}

    scope = {"type": "http", "headers": [(b"host", b"127.0.0.1:4200")]}
    asyncio.run(Gate(app)(scope, receive, send))
    policy = dict(sent[0]["headers"])[b"content-security-policy"].decode()
    assert policy.startswith("default-src 'self' ") and "frame-ancestors 'none'" in policy and "http" not in policy


def test_both_commands_start_the_server_behind_the_gate() -> None:
    assert SERVER == SERVERS["Prefect"][1] == ["flows.serving.gate"]


def test_a_server_for_one_process_answers_that_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.serving.server.server_answers", lambda: False)
    with local_settings() as settings:
        wanted, known = settings.server.api.auth_string, settings.api.auth_string
        assert wanted and known and wanted.get_secret_value() == known.get_secret_value()
        word = known.get_secret_value()
    assert len(word) > 40
    with local_settings() as settings:
        assert settings.api.auth_string and settings.api.auth_string.get_secret_value() != word
    monkeypatch.setattr("flows.serving.server.server_answers", lambda: True)
    with local_settings() as settings:
        assert settings.api.auth_string is None
