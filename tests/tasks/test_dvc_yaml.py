"""dvc.yaml against the code: the modules each stage depends on, its command line, its params."""

import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from rarlhf.config.load import load_params
from rarlhf.config.params import Params
from rarlhf.evaluation.curves import TRAINING_COLUMNS
from tasks.inputs import read_inputs

REPOSITORY = Path(__file__).parents[2]
DVC_YAML: dict[str, Any] = YAML(typ="safe").load((REPOSITORY / "dvc.yaml").read_text("utf-8"))
STAGES: dict[str, dict[str, Any]] = {name: entry.get("do", entry) for name, entry in DVC_YAML["stages"].items()}
CODE = "data/modules"  # where stage `code` puts the code that the others depend on
# Files whose change leaves every stage's bytes as they are: params are depended on key by key, and messages only speak.
NO_BYTES = {
    *(
        f"rarlhf/config/{name}.py"
        for name in (
            "__init__",
            "baselines",
            "errors",
            "escapes",
            "fields",
            "groups",
            "judging",
            "load",
            "method_rules",
            "params",
            "refusals",
            "rules",
            "utility",
        )
    ),
    *(f"rarlhf/messages/{name}.py" for name in ("__init__", "diagnostics", "progress")),
}
BY_FILE = ("config", "messages", "training")  # rooms whose files are depended on one by one
# Sections that a stage's modules name and the stage does not depend on.
UNUSED = {
    "ppo": {"risk"},  # stage `plan` hands it what decides the risk of its method
    "plan": {
        "preset",
        "seeds",
        "data",
        "prompts",
        "ppo",
        "fit",
        "judge",
        "evaluate",
    },  # named by modules that draw answers or report
    "judge": {"evaluate", "ppo", "prompts"},  # named by modules that draw answers
    "fit": {"risk"},  # the same
    "head": {"fit", "kl", "plan", "risk"},  # named by the module of fits, which checks the answers that both read
    "tuned": {"fit", "kl", "risk"},  # the same
    "download": {"prompts"},  # it refuses rows that are too few for the queries, and writes what it would anyway
}


def imports(tree: ast.AST) -> Iterator[str]:
    """Names of the modules that a tree imports, wherever it does, but for those imported for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)
        else:
            yield from imports(node)


def path_of(module: str) -> str:
    """The module's file; a package's is its __init__."""
    path = module.replace(".", "/")
    return f"{path}/__init__.py" if (REPOSITORY / path).is_dir() else f"{path}.py"


def closure(path: str, seen: set[str] | None = None) -> set[str]:
    """The file and all that decides bytes among what it imports, directly or not."""
    seen = set() if seen is None else seen
    seen.add(path)
    for name in map(path_of, imports(ast.parse((REPOSITORY / path).read_text("utf-8")))):
        ours = name.startswith("rarlhf/") or name in ("tasks/continuations.py", "tasks/ruled.py")
        if ours and name not in seen | NO_BYTES and (REPOSITORY / name).is_file():
            closure(name, seen)
    return seen


def dependency(path: str) -> str | None:
    """What dvc.yaml lists for a module: its room, or the module itself; None for a package without code of its own."""
    package, *folders, _ = path.split("/")
    if package == "rarlhf" and folders and folders[0] not in BY_FILE:
        return f"{CODE}/rarlhf/{folders[0]}"
    return None if path.endswith("__init__.py") else f"{CODE}/{path}"


def code_deps(stage: str) -> set[str]:
    return {path for path in STAGES[stage]["deps"] if path.startswith(f"{CODE}/")}


def test_every_stage_has_its_task_and_every_task_its_stage() -> None:
    tasks = {path.stem for path in (REPOSITORY / "tasks").glob("*.py") if "\n@stage\n" in path.read_text("utf-8")}
    assert tasks == set(STAGES)


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "code"])
def test_a_stage_depends_on_the_rooms_it_uses(stage: str) -> None:
    expected = {dependency(path) for path in closure(f"tasks/{stage}.py")} - {None}
    listed = code_deps(stage)
    assert listed - expected == set(), "listed without use"
    assert expected - listed == set(), "used and not listed"


def test_the_search_for_modules_looks_into_packages() -> None:
    measures = {
        str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "rarlhf" / "risk" / "measures").glob("*.py")
    }
    assert measures <= closure("tasks/ppo.py")


@pytest.mark.parametrize("stage", STAGES)
def test_no_dependency_is_listed_twice(stage: str) -> None:
    deps = STAGES[stage]["deps"]
    assert len(set(deps)) == len(deps)


@pytest.mark.parametrize("stage", STAGES)
def test_the_command_is_the_functions_signature(stage: str) -> None:
    words = shlex.split(re.sub(r"\$\{[^}]*\}", "1", STAGES[stage]["cmd"]))
    assert words[:3] == ["python3", "-m", f"tasks.{stage}"]
    given = [word for word in words[3:] if word.startswith("--")]
    function = inspect.unwrap(getattr(import_module(f"tasks.{stage}"), stage))
    names = list(inspect.signature(function).parameters)
    assert names[0] == "run"
    assert given == [f"--{name.replace('_', '-')}" for name in names[1:]]


@pytest.mark.parametrize("stage", STAGES)
def test_what_a_command_reads_and_writes_is_declared(stage: str) -> None:
    entry = STAGES[stage]
    written = [entry_path for key in ("outs", "metrics") for entry_path in paths(entry.get(key, []))]
    words = shlex.split(placeholders(entry["cmd"]))
    used = {
        word for word in words[3:] if "/" in word or word in ("generations", "models", "curves", "plots", "utility")
    }
    declared = {placeholders(path) for path in [*entry["deps"], *written]}
    assert used <= declared


def placeholders(text: str) -> str:
    return re.sub(r"\$\{(?:item\.)?(\w+)\}", r"{\1}", text)


def paths(items: list[Any]) -> Iterator[str]:
    """Paths of a list of outputs, each plain or with options."""
    for item in items:
        yield from [item] if isinstance(item, str) else item


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage not in ("code", "check")])
def test_nothing_runs_before_the_params_are_checked(stage: str) -> None:
    assert {"data/inputs/params.txt", "data/inputs"} & set(STAGES[stage]["deps"])


def sections_read(stage: str) -> set[str]:
    """Names of the top level of the params that the stage's modules take, as in `run.params.X`; all for a dump."""
    known = set(Params.model_fields)
    names = set()
    for path in closure(f"tasks/{stage}.py"):
        for node in ast.walk(ast.parse((REPOSITORY / path).read_text("utf-8"))):
            if isinstance(node, ast.Attribute):
                owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
                taken = known if node.attr == "model_dump" else known & {node.attr}
                names |= taken if owner in ("params", "p") else set()
    return names


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage not in ("code", "check")])
def test_the_params_a_stage_reads_are_listed(stage: str) -> None:
    listed = {key.split(".")[0] for key in paths(STAGES[stage].get("params", []))}
    assert sections_read(stage) - UNUSED.get(stage, set()) <= listed


def test_the_search_for_params_finds_them() -> None:
    assert sections_read("ppo") == {"ppo", "kl", "risk", "reward", "runtime", "prompts", "model"}
    assert "seeds" in sections_read("generate")
    assert sections_read("evaluate") == set(Params.model_fields)  # the report shows them all


def with_rules(params: Params) -> Params:
    """The params with an entry rlhf in the groups that stages go through one by one."""
    entry = {"rlhf": {"of": "sft", "expert": "base", "anti_expert": "base", "head": "worth"}}
    methods = params.methods.model_copy(update={"decoded": entry, "guided": entry, "headed": entry})
    return params.model_copy(update={"methods": methods})


@pytest.mark.parametrize("stage", STAGES)
def test_every_listed_key_is_a_key(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr("tasks.inputs.digest", lambda path: "")  # the files are made by running
    params = with_rules(load_params("presets/tiny.yaml"))
    arguments = {"seed": 1, "method": "rlhf", "source": "path", "split": "train"}
    inputs = read_inputs(stage, arguments, params)
    assert inputs.params or stage in ("code", "check")


@pytest.mark.parametrize(("title", "plot"), [item for entry in DVC_YAML["plots"] for item in entry.items()])
def test_a_plot_has_its_template_and_its_data(title: str, plot: dict[str, Any]) -> None:
    assert "'" not in title  # would end the string in DVC's page, and the plot would be missing
    assert (REPOSITORY / ".dvc" / "plots" / f"{plot['template']}.json").is_file()
    ((path, columns),) = plot["y"].items()
    if path == "plots/training.csv":
        assert columns in TRAINING_COLUMNS.values()
    else:
        assert columns == "reward"


def test_metrics_are_in_git_so_that_a_fresh_clone_can_compare() -> None:
    entries = [(stage, item) for stage in STAGES for key in ("outs", "metrics") for item in STAGES[stage].get(key, [])]
    kept = {path for _, item in entries if isinstance(item, dict) for path, how in item.items() if not how["cache"]}
    assert kept == {"metrics/reward.json", "metrics/second_scorer.json", "metrics/evaluate.json", "metrics/summary"}
    assert not [item for _, item in entries if isinstance(item, str) and item.startswith("metrics/")]
    ignored = (REPOSITORY / ".gitignore").read_text("utf-8").splitlines()
    assert "/plots/" in ignored and "/metrics/" not in ignored


def test_dvc_yaml_fits_on_a_few_screens() -> None:
    assert len((REPOSITORY / "dvc.yaml").read_text("utf-8").splitlines()) < 710
