import json
import os
import subprocess
import sys
from argparse import ArgumentTypeError
from pathlib import Path

import pytest

import flows.ablation
from flows.ablation import main
from flows.ablations.command import parser, seeds_of, values_of
from flows.ablations.experiments import Experiments
from flows.ablations.plan import cell_values, make_plan
from flows.running.command import value_of
from flows.running.processes import Processes
from rarlhf.config.errors import UserError

REPOSITORY = Path(__file__).parents[2]
DVC_YAML = """\
stages:
  common:
    cmd: echo common >> $DVC_ROOT/.prefect/ran.txt && mkdir -p data && echo a > data/a.txt
    deps: [measure.py]
    outs: [data/a.txt]
  evaluate:
    cmd: python measure.py
    deps: [data/a.txt, measure.py]
    params: [seeds, risk]
    outs: [metrics/evaluate.json: {cache: false}]
"""
MEASURE = """\
import json, os, sys
from pathlib import Path

from rarlhf.evaluation.names import COMPARED
from rarlhf.evaluation.statistics import over_seeds, paired_difference
from rarlhf.config.load import load_params

params = load_params()
if params.risk.alpha == 0.5:
    sys.exit("error: evaluate: this cell fails")
with Path(os.environ["DVC_ROOT"], ".prefect/ran.txt").open("a") as ran:
    ran.write(f"alpha {params.risk.alpha}\\n")
values = {"rlhf": [0.0] * len(params.seeds), "ra_rlhf": [params.risk.alpha + seed for seed in params.seeds]}
less = {metric: paired_difference(values["ra_rlhf"], values["rlhf"], 0.0, 0.95) for metric in COMPARED}
Path("metrics").mkdir(exist_ok=True)
Path("metrics/evaluate.json").write_text(json.dumps({
    "preset": params.preset, "seeds": params.seeds, "confidence": 0.95,
    "methods": {method: {metric: over_seeds(of) for metric in COMPARED} for method, of in values.items()},
    "comparisons": {"ra_rlhf_minus_rlhf": {"metrics": less, "like_kl": True}},
    "test": {"prompts": 3, "samples": 2, "tail_prompts": 1, "tail_rule": ""},
}))
"""


@pytest.fixture
def cells(toy: Path) -> Path:
    """A repository whose stage `evaluate` measures its own risk.alpha, and fails where that is 0.5."""
    (toy / "dvc.yaml").write_text(DVC_YAML)
    (toy / "measure.py").write_text(MEASURE)
    with (toy / ".gitignore").open("a") as stream:
        stream.write("/data/\n")
    (toy / "metrics").mkdir()  # in git, as in the repository itself, and written anew by every cell
    (toy / "metrics" / "evaluate.json").write_text("{}\n")
    git = ["git", "-c", "user.name=n", "-c", "user.email=n@example.org"]
    subprocess.run([*git, "add", "-A"], check=True)
    subprocess.run([*git, "commit", "-qm", "toy"], check=True)
    return toy


def run(*arguments: str) -> tuple[int, str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    command = [sys.executable, "-m", "flows.ablation", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def ran(folder: Path) -> list[str]:
    return sorted((folder / ".prefect" / "ran.txt").read_text().splitlines())


@pytest.mark.slow
def test_cells_run_once_and_a_failed_one_leaves_the_others(cells: Path) -> None:
    before = {name: (cells / name).read_bytes() for name in ("params.yaml", "dvc.yaml")}
    grid = ("--grid", "risk.alpha=0.25,0.5,0.75", "--seeds", "1,2", "--jobs", "2")
    status, shown = run(*grid)
    assert status == 1
    assert "not done: alpha-0.5 (alpha-0.5: error: evaluate: this cell fails" in shown
    assert ran(cells) == ["alpha 0.25", "alpha 0.75", "common"]
    assert {name: (cells / name).read_bytes() for name in before} == before
    assert [path.name for path in (cells / ".dvc/tmp/exps/standalone").iterdir()] == ["run"]
    table = json.loads((cells / "reports/ablation/alpha/table.json").read_text())
    assert [row["cell"] for row in table["rows"]] == [None, "alpha-0.25", "alpha-0.75"]
    assert table["rows"][2]["metrics"]["reward_mean"]["per_seed"] == [1.75, 2.75]
    text = (cells / "reports/ablation/alpha/table.md").read_text()
    assert "| alpha-0.25 | done | 1 | 1 |" in text and "| alpha-0.5 | failed |" in text  # `common` was there
    refs = ["git", "for-each-ref", "--format=%(refname:lstrip=-1)", "refs/exps"]
    listed = subprocess.run(refs, capture_output=True, text=True, check=True).stdout
    assert listed.split() == ["alpha-0.25", "alpha-0.75"]

    status, shown = run("--grid", "risk.alpha=0.25,0.75", "--seeds", "1,2")
    assert status == 0
    assert "2 cells; 2 had run before" in shown
    assert ran(cells) == ["alpha 0.25", "alpha 0.75", "common"]
    _with_other_seeds_a_cell_gets_another_name()


def _with_other_seeds_a_cell_gets_another_name() -> None:
    plan = make_plan("alpha", [{"risk.alpha": 0.25}], {"seeds": [1, 2, 3]}, Experiments(Processes()))
    assert (list(plan.cells), plan.kept) == (["alpha-0.25-2"], frozenset())
    with Path("measure.py").open("a") as stream:
        stream.write("# other code\n")
    plan = make_plan("alpha", [{"risk.alpha": 0.25}], {"seeds": [1, 2]}, Experiments(Processes()))
    assert (list(plan.cells), plan.kept) == (["alpha-0.25-2"], frozenset())


def test_without_a_commit_it_is_said(toy: Path) -> None:
    with pytest.raises(UserError, match="need a git repository with a commit"):
        Experiments(Processes())


def test_one_way_to_say_the_cells() -> None:
    assert cell_values({"risk.alpha": [1]}, None, None, None) == ([{"risk.alpha": 1}], "alpha")
    points, name = cell_values(None, None, "table3", None)
    assert (len(points), name) == (4, "table3")
    for wrong in ((None, None, None), ({"risk.alpha": [1]}, None, "table3")):
        with pytest.raises(UserError, match="give one of --grid"):
            cell_values(*wrong, None)
    with pytest.raises(UserError, match="--paper table9 is unknown; use table3"):
        cell_values(None, None, "table9", None)
    with pytest.raises(UserError, match="no folder can be named 'a/b'"):
        cell_values(None, None, "table3", "a/b")


def test_values_on_the_command_line() -> None:
    assert values_of("risk.alpha=0.2,1e-5") == ("risk.alpha", [0.2, 1e-5])
    assert value_of("risk.measure=none") == ("risk.measure", "none")
    assert seeds_of("1,2") == [1, 2]
    for reader, wrong in (
        (values_of, "risk.alpha"),
        (value_of, "risk.alpha"),
        (values_of, "risk.alpha=[0.2"),
        (value_of, "a=2024-13-45"),
    ):
        with pytest.raises(ArgumentTypeError):
            reader(wrong)
    options = parser().parse_args(["--cell", "risk.alpha=1", "--cell", "risk.alpha=0.5", "risk.rho=1.0"])
    assert [dict(cell) for cell in options.cells] == [{"risk.alpha": 1}, {"risk.alpha": 0.5, "risk.rho": 1.0}]


def test_a_wrong_value_is_said_before_a_server_is_started(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["ablation", "--grid", "risk.alpha=0.2,2"])
    monkeypatch.setattr(flows.ablation, "local_settings", None)
    assert main() == 1
    assert capsys.readouterr().err.startswith("error: params.yaml with cell alpha-2: 1 problem:\n  risk.alpha = 2")


@pytest.mark.parametrize(
    ("words", "key", "value", "shared"),
    [
        ("--grid risk.alpha=0.2,0.4 --seeds 1,2", "seeds", "seeds: [1, 2, 3]", "no_label: []"),
        ("--frontier 0.5,1", "kl.target", "target: 0.75", "proportional: 0.2"),
        ("--grid kl.target=0.5,1", "kl.target", "target: 0.75", "proportional: 0.2"),
    ],
)
def test_a_key_that_shares_its_value_is_refused_in_one_line(
    words: str,
    key: str,
    value: str,
    shared: str,
    toy: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["ablation", *words.split()])
    monkeypatch.setattr(flows.ablation, "local_settings", None)
    path = Path("params.yaml")
    text = path.read_text()
    text = text.replace(value, value.replace(": ", ": &shared "), 1)
    path.write_text(text.replace(shared, f"{shared.partition(':')[0]}: *shared ", 1))
    assert main() == 1
    line = text[: text.index("&shared")].count("\n") + 1
    assert capsys.readouterr().err == (
        f"error: {key}: in params.yaml, line {line}, the value is shared with another key by YAML anchors (&, *, <<); "
        "write it out in each place\n"
    )
