import re

import pytest

from flows.running.devices import Shares
from flows.running.guard import SIGNALLED
from flows.running.processes import Processes
from flows.running.reproduce import DVC_FAILED, PassingTrouble, Repro, StageError, error_of
from rarlhf.config.errors import PASSING_STATUS


def repro(remote: str | None = None) -> Repro:
    return Repro(False, remote, Processes(), Shares([{}]))


def test_a_remote_is_asked_first_unless_the_stage_is_forced() -> None:
    modules = [[command[2] for command in one.commands("sft")] for one in (repro(), repro("team"))]
    assert modules == [["dvc"], ["flows.running.remote", "dvc"]]
    (forced,) = Repro(True, "team", Processes(), Shares([])).commands("sft")
    assert forced[2:] == ["dvc", "--wait-for-lock", "repro", "--single-item", "--force", "sft"]


RUN = "ERROR: failed to reproduce 'sft': failed to run: python -m tasks.sft --out models/sft, exited with"


@pytest.mark.parametrize(
    "last",
    [
        [f"{RUN} -9"],
        [f"{RUN} 137"],
        ["error: sft: the hub cannot be reached", f"{RUN} 75"],
        ["ERROR: failed to reproduce 'sft': '/x/models' is busy, it is being blocked by:", "  (PID 3): dvc repro"],
        ["ERROR: Unable to acquire lock. Most likely another DVC process is running"],
    ],
)
def test_a_passing_trouble_is_known_by_dvcs_last_error(last: list[str]) -> None:
    told = next(line for line in last if line.startswith(("error:", "ERROR:")))
    with pytest.raises(PassingTrouble, match=f"^sft: {re.escape(told[:20])}"):
        raise error_of("sft", ["Running stage 'sft':", *last], DVC_FAILED)


@pytest.mark.parametrize(
    "last",
    [
        ["error: sft: data.path has a text with Connection timed out", f"{RUN} 1"],
        ["requests.ConnectionError: Temporary failure in name resolution", f"{RUN} 1"],
        [f"{RUN} -9", "ERROR: Unable to acquire lock", "error: sft: quotes of other runs, exited with 75", f"{RUN} 1"],
        ["a prompt, exited with 75", f"{RUN} 1"],
        [f"{RUN} 75", "ERROR: failed to reproduce 'other': failed to run: x, exited with 75"],
        [f"{RUN} 143"],
        ["error: sft: Connection refused"],
    ],
)
def test_what_a_stage_writes_does_not_make_its_failure_pass(last: list[str]) -> None:
    with pytest.raises(StageError, match="^sft: ") as caught:
        raise error_of("sft", ["Running stage 'sft':", *last], DVC_FAILED)
    assert not isinstance(caught.value, PassingTrouble)


def test_a_command_that_is_not_dvc_tells_by_its_own_status() -> None:
    lines = ["error: sft: remote team: Connection refused"]
    with pytest.raises(PassingTrouble, match="sft: error: sft: remote team"):
        raise error_of("sft", lines, PASSING_STATUS)
    with pytest.raises(PassingTrouble, match="sft: DVC was killed"):
        raise error_of("sft", ["Running stage 'sft':"], SIGNALLED + 9)
    with pytest.raises(StageError, match="sft: error: sft: remote team") as caught:
        raise error_of("sft", lines, 1)
    assert not isinstance(caught.value, PassingTrouble)
