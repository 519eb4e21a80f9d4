import hashlib
from pathlib import Path

import pytest

from rarlhf.config.errors import UserError
from rarlhf.config.params import Params
from tasks.inputs import (
    Work,
    digest,
    inputs_of,
    label,
    params_hash,
    read_inputs,
    run_names,
    stage_of,
    title_of,
    work_of,
)


def test_a_stage_has_its_own_params_and_files_and_no_others(params: Params) -> None:
    inputs = read_inputs("toy", {"seed": 2, "source": Path("in.txt")}, params)
    assert inputs.stage == "toy@2"
    assert sorted(inputs.params) == ["ppo.lr", "risk"]
    assert inputs.params["ppo.lr"] == params.ppo.lr
    assert inputs.params["risk"]["alpha"] == params.risk.alpha
    assert sorted(inputs.files) == ["data/raw", "in.txt", "made/2.txt"]


def test_keys_named_under_the_file_and_the_whole_file(params: Params) -> None:
    Path("scratch.txt").write_text("")
    some = read_inputs("some", {}, params)
    assert some.params == {"kl.coef": params.kl.coef}
    assert list(some.files) == ["scratch.txt"]
    assert read_inputs("check", {}, params).params == {"": params.model_dump(mode="json")}


def test_digests_are_sha256_of_content(workspace: Path) -> None:
    content = hashlib.sha256(b"{}\n").hexdigest()
    assert digest(Path("data/raw/train.jsonl")) == content
    assert digest(Path("data/raw")) == hashlib.sha256(f"train.jsonl {content}\n".encode()).hexdigest()


@pytest.mark.parametrize("path", ["in.txt", "data/raw/train.jsonl", "made/2.txt"])
def test_the_hash_follows_every_file(path: str, params: Params) -> None:
    before = read_inputs("toy", {"seed": 2}, params).hash
    Path(path).write_text("changed")
    assert read_inputs("toy", {"seed": 2}, params).hash != before


def test_the_hash_follows_names_in_folders_the_seed_and_own_params_only(params: Params) -> None:
    before = read_inputs("toy", {"seed": 2}, params).hash
    assert read_inputs("toy", {"seed": 2}, params).hash == before
    assert read_inputs("toy", {"seed": 1}, params).hash != before
    other = params.model_copy(update={"kl": params.kl.model_copy(update={"coef": 9.0})})
    assert read_inputs("toy", {"seed": 2}, other).hash == before
    own = params.model_copy(update={"risk": params.risk.model_copy(update={"alpha": 0.9})})
    assert read_inputs("toy", {"seed": 2}, own).hash != before
    Path("data/raw/train.jsonl").rename("data/raw/test.jsonl")
    assert read_inputs("toy", {"seed": 2}, params).hash != before


def test_compiled_python_does_not_count(workspace: Path) -> None:
    before = digest(Path("data"))
    Path("data/raw/__pycache__").mkdir()
    Path("data/raw/__pycache__/x.pyc").write_text("x")
    assert digest(Path("data")) == before


def test_labels_are_dvcs_names() -> None:
    assert label("check", {"out": Path("x")}) == "check"
    assert label("ppo", {"method": "ra_rlhf", "seed": 3}) == "ppo@ra_rlhf-3"
    assert label("generate", {"method": "rlhf"}) == "generate@rlhf"


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("nosuch", "dvc.yaml has no stage nosuch; it has toy, check"),
        ("wrong", "names the key risk.beta"),
        ("lacking", "nowhere is missing"),
    ],
)
def test_what_is_not_there_is_said(stage: str, message: str, params: Params) -> None:
    with pytest.raises(UserError, match=message):
        read_inputs(stage, {}, params)


def test_a_missing_dvc_yaml_is_said(params: Params) -> None:
    Path("dvc.yaml").unlink()
    with pytest.raises(UserError, match="run from the repository's root"):
        read_inputs("toy", {}, params)


def test_a_name_in_dvc_tells_stage_and_arguments(workspace: Path) -> None:
    assert stage_of("toy@2") == ("toy", {"seed": "2"}) and stage_of("check") == ("check", {})
    assert title_of("toy@2") == "toy seed 2" and title_of("check") == "check"
    Path("dvc.yaml").write_text("stages: {ppo: {matrix: {method: [ra_rlhf], seed: [1]}, cmd: x}}\n")
    assert title_of("ppo@ra_rlhf-1") == "ppo ra_rlhf seed 1"
    with pytest.raises(UserError, match="dvc.yaml has no stage nosuch"):
        title_of("nosuch@1")


def test_what_dvc_yaml_says_of_a_run(params: Params) -> None:
    command = "python -m tasks.toy --seed 2 --source in.txt --out out/2"
    assert work_of("toy", {"seed": 2}, params) == Work("a toy", command, ("out/2", "metrics/toy.json"))
    assert work_of("check", {}, params) == Work("", "python -m tasks.check", ())
    assert work_of("nosuch", {}, params) is None


def test_the_params_hash_follows_every_value(params: Params) -> None:
    turned = Params(**dict(reversed(list(params.model_dump(mode="json").items()))))
    assert params_hash(params) == params_hash(turned) and len(params_hash(params)) == 64
    other = params.model_copy(update={"kl": params.kl.model_copy(update={"coef": 9.0})})
    assert params_hash(other) != params_hash(params)


FOREACH = """\
stages:
  ruled:
    foreach: ${methods.decoded}
    do:
      desc: a rule
      cmd: python -m tasks.ruled --method ${key} --model models/${item.of}
      deps: ["models/${item.of}", "plan/${key}.json"]
      params: [generate]
      outs: ["generations/${key}"]
  plain:
    cmd: python -m tasks.plain
"""


@pytest.fixture
def ruled(params: Params) -> Params:
    """Two methods of one stage with `foreach`, and its files."""
    Path("dvc.yaml").write_text(FOREACH)
    for name in ("models/sft", "models/rlhf", "plan/best.json", "plan/soft_8.json"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(name)
    methods = {"best": {"rule": "best_of_n", "of": "sft"}, "soft_8": {"rule": "soft_rejection", "of": "rlhf"}}
    return params.model_copy(update={"methods": params.methods.model_copy(update={"decoded": methods})})


def test_a_stage_for_each_method_has_its_key_and_its_models(ruled: Params) -> None:
    assert list(run_names(ruled)) == ["ruled@best", "ruled@soft_8", "plain"]
    assert stage_of("ruled@soft_8") == ("ruled", {"method": "soft_8"})
    assert title_of("ruled@soft_8") == "ruled soft_8"
    inputs = inputs_of("ruled@soft_8", ruled)
    assert inputs.stage == label("ruled", {"method": "soft_8"}) == "ruled@soft_8"
    assert sorted(inputs.files) == ["models/rlhf", "plan/soft_8.json"]
    assert list(inputs.params) == ["generate"]
    assert inputs_of("ruled@best", ruled).files.keys() == {"models/sft", "plan/best.json"}
    command = "python -m tasks.ruled --method best --model models/sft"
    assert work_of("ruled", {"method": "best"}, ruled) == Work("a rule", command, ("generations/best",))


def test_a_stage_for_no_method_has_no_run(params: Params) -> None:
    Path("dvc.yaml").write_text(FOREACH)
    assert list(run_names(params)) == ["plain"]
