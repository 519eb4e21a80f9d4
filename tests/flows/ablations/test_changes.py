"""What DVC is told so that a cell gets its methods, applied by DVC itself to every preset."""

import shutil
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides
from ruamel.yaml import YAML

from flows.ablations.experiments import _changes

PRESETS = sorted(Path(__file__).parents[3].joinpath("presets").glob("*.yaml"))


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
@pytest.mark.parametrize(("key", "kept"), [("methods.ppo", "rlhf"), ("methods.ppo", None), ("methods.fit", None)])
def test_methods_that_a_cell_leaves_out(
    key: str, kept: str | None, preset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = preset.read_text("utf-8").replace("  path: null", "  path: rows")  # of the data files
    Path("params.yaml").write_text(text, encoding="utf-8")
    before = YAML(typ="safe").load(text)
    section, name = key.split(".")
    wanted = {kept: before[section][name][kept]} if kept else {}
    shutil.copy("params.yaml", "cell.yaml")
    apply_overrides("cell.yaml", _changes(key, wanted))
    assert YAML(typ="safe").load(Path("cell.yaml")) == before | {section: before[section] | {name: wanted}}
