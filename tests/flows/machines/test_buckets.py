"""A bucket as the remote, on moto's server: `pip install dvc-s3 'moto[server]'`, which `make` does not install."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from dvc.cli import main as dvc_main

import flows.machines.results
from flows.machines.clone import ready
from flows.machines.results import ask, send, take
from rarlhf.config.errors import UserError
from tests.flows.machines.clones import Clone

pytest.importorskip("dvc_s3", reason="dvc-s3 is not installed")
servers = pytest.importorskip("moto.server", reason="moto[server] is not installed")
pytestmark = pytest.mark.slow


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server that has the bucket `results`."""
    import boto3

    for name, value in (
        ("AWS_ACCESS_KEY_ID", "a"),
        ("AWS_SECRET_ACCESS_KEY", "b"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    server = servers.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    boto3.client("s3", endpoint_url=address).create_bucket(Bucket="results")
    yield address
    server.stop()


def use(address: str) -> None:
    assert dvc_main(["remote", "add", "-q", "--local", "-f", "store", "s3://results/rarlhf"]) == 0
    assert dvc_main(["remote", "modify", "-q", "--local", "store", "endpointurl", address]) == 0


@pytest.mark.filterwarnings("ignore")  # of packages that are no part of this project
def test_a_bucket_carries_inputs_and_results(clone: Clone, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows.machines.results, "versions", lambda: {})
    run = clone("run")
    use(bucket)
    assert dvc_main(["repro", "-q", "first"]) == 0
    request = ask("store", "train@2", force=False)
    assert request is not None
    clone("machine")
    use(bucket)
    with ready(request):
        assert dvc_main(["repro", "-q", "--single-item", "train@2"]) == 0
        assert send("store", "train@2") == 1
    monkeypatch.chdir(run)
    take("store", "train@2")
    assert Path("models/2.txt").read_text() == "a\n1\nc\n"
    use("http://127.0.0.1:9")  # nothing listens there
    Path("code.txt").write_text("another\n")
    with pytest.raises(UserError, match="remote store: "):
        ask("store", "train@2", force=False)
