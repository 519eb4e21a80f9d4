from pathlib import Path

import pytest

import flows.machines.clone
from flows.machines.clone import claim, refuse
from flows.machines.request import Request, edited, head, other_version, versions
from rarlhf.config.errors import UserError
from tests.flows.machines.clones import Clone, git


def request(**changes: object) -> Request:
    own = {"stage": "train@2", "commit": head(), "versions": {"torch": "1"}, "remote": "store", "force": False}
    return Request.model_validate({**own, "params": None, "files": {}, "locked": {}, **changes})


@pytest.fixture(autouse=True)
def _in_a_clone(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows.machines.clone, "versions", lambda: {"torch": "1", "dvc": "3"})
    clone("machine")


def test_a_machine_refuses_what_would_give_other_bytes() -> None:
    refuse(request())
    with pytest.raises(UserError, match=r"is at commit \w{12}, the run at 0123456789ab: `git fetch && git checkout 0"):
        refuse(request(commit="0123456789abcdef"))
    with pytest.raises(UserError, match="other packages: torch 1 here, 2 there; install what constraints.txt names"):
        refuse(request(versions={"torch": "2"}))
    with pytest.raises(UserError, match="other packages: trl is missing here, 1 there"):
        refuse(request(versions={"torch": "1", "trl": "1"}))
    Path("code.txt").write_text("edited\n")
    Path("new.py").touch()
    with pytest.raises(UserError, match=r"the code here is not that of the commit \(code.txt, new.py\)"):
        refuse(request())


def test_what_stages_write_is_no_edit() -> None:
    for path in ("params.yaml", "dvc.lock", "metrics/reward.json"):
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_text("x")
    refuse(request())
    assert edited(besides=()) == ["params.yaml", "dvc.lock", "metrics/"]


def test_a_clone_in_which_somebody_works_does_not_become_a_machine() -> None:
    Path("params.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"this clone has edits \(params.yaml\): a machine needs a clone that nobody"):
        claim()
    git("checkout", "-q", "params.yaml")
    claim()
    Path("params.yaml").write_text("of a stage that was killed")
    claim()
    Path("code.txt").write_text("edited")
    with pytest.raises(UserError, match="the code here is not that of the commit"):
        claim()


def test_equal_requests_have_equal_digests() -> None:
    assert request().digest == request().digest
    assert request().digest != request(force=True).digest


def test_versions_are_those_of_what_stages_import() -> None:
    found = versions()
    assert {"python", "torch", "transformers", "dvc"} <= set(found) and "pytest" not in found
    assert found["python"] == "3.11" or found["python"] == "3.12"
    assert other_version(found, found) == ""
    assert other_version({"torch": "1"}, {}) == "torch is missing here, 1 there"
