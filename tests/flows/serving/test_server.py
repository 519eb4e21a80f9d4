import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.serving.server import own_server_answers
from rarlhf.config.errors import UserError


@contextmanager
def answering(body: bytes) -> Iterator[None]:
    """Something that answers every question the same way, at Prefect's address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802
            assert self.path == "/api/admin/settings"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with temporary_settings(updates={PREFECT_API_URL: f"http://127.0.0.1:{server.server_port}/api"}):
            yield
        server.shutdown()


def test_a_workspaces_own_server_is_told_from_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with answering(json.dumps({"home": str(tmp_path / ".prefect")}).encode()):
        assert own_server_answers()
    with (
        answering(json.dumps({"home": "/elsewhere/.prefect"}).encode()),
        pytest.raises(UserError, match="the Prefect server of another workspace answers .*prefect.toml"),
    ):
        own_server_answers()
    with answering(b"<html>"), pytest.raises(UserError, match="something that is not a Prefect server answers"):
        own_server_answers()


def test_nothing_there_is_no_server() -> None:
    with temporary_settings(updates={PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        assert not own_server_answers()
