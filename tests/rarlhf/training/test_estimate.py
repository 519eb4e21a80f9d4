"""The estimate of what a run takes, and the refusal of machines that do not suffice."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import transformers

import rarlhf.training.estimate
from rarlhf.config.errors import UserError
from rarlhf.config.load import load_params
from rarlhf.config.params import Params
from rarlhf.training.estimate import (
    EFFICIENCY,
    Needs,
    accelerator_memory,
    available_memory,
    estimate,
    matmul_rate,
    refuse_if_short,
)
from rarlhf.training.memory import GIB, Shape, model_shape, transformer_shape
from tasks.preset import set_value
from tests.hubs import Cache


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def rate(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    def fix(operations: float) -> None:
        monkeypatch.setattr(rarlhf.training.estimate, "matmul_rate", lambda params: operations)

    fix(1e10)
    return fix


def with_source(params: Params, source: str) -> Params:
    return params.model_copy(update={"model": params.model.model_copy(update={"source": source})})


def test_shape_by_hand() -> None:
    # embeddings 7 x 4 and positions 3 x 4, two layers of 12 x 4^2
    assert transformer_shape(vocab_size=7, context=3, layers=2, width=4).parameters == 28 + 12 + 2 * 192


GPTJ = {"model_type": "gptj", "vocab_size": 50400, "n_layer": 28, "n_embd": 4096}
GPT2 = {"model_type": "gpt2", "vocab_size": 50257, "n_layer": 12, "n_embd": 768}
# A multimodal configuration, whose language model is nested: 12 layers of 4 x 64 x 64 + 3 x 64 x 256 in matrices.
TEXT = {"model_type": "gemma3_text", "vocab_size": 1000, "hidden_size": 64, "num_hidden_layers": 12, "head_dim": 16}
TEXT |= {"intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4}
GEMMA = {"model_type": "gemma3", "text_config": TEXT}
LLAMA = {"model_type": "llama", **{key: value for key, value in TEXT.items() if key != "model_type"}}


def shape_of(config: dict[str, object], params: Params, folder: Path) -> Shape | None:
    (folder / "config.json").write_text(json.dumps(config))
    return model_shape(with_source(params, str(folder)))


def test_a_local_models_shape_is_that_of_its_configuration(params: Params, tmp_path: Path) -> None:
    four = dict.fromkeys(("q_proj", "k_proj", "v_proj"), 2)
    for config, parameters, layers, matrices, width, sides in (
        (GPT2, 124_439_808, 12, 12 * 12 * 768**2, 768, {"c_attn": 4, "c_proj": 2 + 5, "c_fc": 5}),
        (GPTJ, 6_050_882_784, 28, 28 * 12 * 4096**2, 4096, four | {"out_proj": 2, "fc_in": 5, "fc_out": 5}),
        # two embeddings, a norm of 64 at the end and two in each layer
        (
            LLAMA,
            2 * 64_000 + 12 * (65_536 + 128) + 64,
            12,
            12 * 65_536,
            64,
            four | {"o_proj": 2, "gate_proj": 5, "up_proj": 5, "down_proj": 5},
        ),
    ):
        shape = shape_of(config, params, tmp_path)
        widths = {name: layers * width * count for name, count in sides.items()}
        assert shape == Shape(parameters, layers, config["vocab_size"], matrices, width, 2 * width, widths)


def test_a_nested_configuration_counts_in_full(params: Params, tmp_path: Path) -> None:
    shape = shape_of(GEMMA, params, tmp_path)
    assert shape is not None
    assert (shape.layers, shape.vocab_size, shape.width) == (12, 1000, 64)
    assert shape.matrices >= 12 * 65_536  # and those that read images
    assert shape.parameters > shape.matrices + 64_000


@pytest.mark.parametrize("kind", ["llava", "bert_but_larger", None])
def test_what_cannot_be_a_language_model_is_refused_before_anything_runs(
    kind: str | None, params: Params, tmp_path: Path
) -> None:
    with pytest.raises(
        UserError, match="model.source = .*(no causal language model of the kind|cannot be loaded)"
    ) as told:
        shape_of({"model_type": kind, "hidden_size": 9999}, params, tmp_path)
    assert "\n" not in str(told.value)


def test_a_size_that_cannot_be_counted_is_not_known(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: Callable[[float], None]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise NotImplementedError("Cannot copy out of meta tensor; no data!")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_config", fails)
    assert shape_of(GPT2, params, tmp_path) is None
    assert estimate(with_source(params, str(tmp_path))) is None


def test_estimating_leaves_the_process_as_it_was(params: Params, tmp_path: Path, restored: None) -> None:
    def state() -> list[object]:
        torch_state = [torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_default_dtype()]
        others = [torch.get_default_device(), torch.is_grad_enabled(), transformers.logging.get_verbosity()]
        memory = torch.utils.deterministic.fill_uninitialized_memory
        return [*torch_state, *others, memory, random.getstate(), torch.get_rng_state().tolist()]

    torch.set_num_threads(params.runtime.threads + 1)
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True
    before = state()
    (tmp_path / "config.json").write_text(json.dumps(GPT2))
    assert estimate(with_source(params, str(tmp_path))) is not None
    assert accelerator_memory(params) is None
    assert state() == before


def test_without_the_hub_a_model_of_it_has_no_estimate(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Cache(tmp_path, monkeypatch)
    assert estimate(with_source(params, "nobody/no-such-model")) is None


def test_a_name_that_the_hub_cannot_have_is_refused_before_anything_runs(params: Params) -> None:
    with pytest.raises(UserError, match="model.source = 'models/my/gpt2': neither a local folder nor a name"):
        estimate(with_source(params, "models/my/gpt2"))


@pytest.fixture
def of_preset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: Callable[[float], None]
) -> Callable[[str, bool], Needs]:
    """The needs of a preset whose base model has the true shape; with or without an accelerator."""
    repository, cache = Path(__file__).parents[3], Cache(tmp_path / "home", monkeypatch)

    def of(name: str, accelerator: bool) -> Needs:
        text = (repository / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
        path = tmp_path / "params.yaml"
        path.write_text(set_value(text, "data.path", "data") if "source: file" in text else text)
        params = load_params(path)
        config = tmp_path / name
        config.mkdir()
        (config / "config.json").write_text(json.dumps(GPTJ if "gptj" in name else GPT2))
        cache.add(params.model.source, config, commit=str(params.model.revision))
        monkeypatch.setattr(rarlhf.training.estimate, "_on_accelerator", lambda params: accelerator)
        needs = estimate(params)
        assert needs is not None
        return needs

    return of


def test_gptj_wants_an_accelerator_of_some_ten_gibibytes(of_preset: Callable[[str, bool], Needs]) -> None:
    needs = of_preset("imdb-gptj", True)
    # 5.25 GiB of 8-bit matrices (28 x 12 x 4096^2), 0.4 of embeddings; then activations
    assert 5.6 * GIB < needs.accelerator < 11 * GIB
    assert 12 * GIB < needs.memory < 15 * GIB  # 10.9 GiB of bfloat16, and the process
    assert 40 * GIB < needs.disk < 60 * GIB  # the hub's float32, and bfloat16 twice
    assert "GiB of the accelerator's" in needs.text()


def test_gptj_is_refused_in_one_line_where_it_has_no_room(
    of_preset: Callable[[str, bool], Needs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0, 0, 500 * GIB))
    needs = of_preset("jigsaw-gptj", True)
    refuse_if_short(needs, tmp_path, 30.0 * GIB, 16.0 * GIB)
    with pytest.raises(UserError, match="GiB of memory are needed and 4.0 GiB are free; lower ppo.micro_batch_size"):
        refuse_if_short(needs, tmp_path, 4.0 * GIB, 16.0 * GIB)
    with pytest.raises(UserError, match="of the accelerator's memory are needed and 2.0 GiB are free; lower") as caught:
        refuse_if_short(needs, tmp_path, 30.0 * GIB, 2.0 * GIB)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("preset", ["imdb-gpt2", "jigsaw-gpt2", "rtp-gpt2", "imdb-gpt2-as-shipped"])
def test_gpt2_fits_a_common_accelerator(
    preset: str, of_preset: Callable[[str, bool], Needs], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0, 0, 500 * GIB))
    needs = of_preset(preset, True)
    assert 2.3 * GIB < needs.accelerator < 16 * GIB  # 124 M weights, five times 4 bytes each, and activations
    refuse_if_short(needs, tmp_path, 8.0 * GIB, 12.0 * GIB)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an accelerator here")
def test_a_preset_for_cuda_is_refused_without_it(tmp_path: Path) -> None:
    params = load_params(Path(__file__).parents[3] / "presets" / "imdb-gptj.yaml")
    with pytest.raises(UserError, match="no CUDA device is visible here; run where there is one, or set cpu"):
        estimate(params)


@pytest.mark.parametrize(
    ("seconds", "text"), [(20.0, "1 min"), (10700.0, "178 min"), (36000.0, "10 h"), (86400.0 * 1500, "1,500 days")]
)
def test_the_time_is_in_units_that_one_can_take_in(seconds: float, text: str) -> None:
    assert f"two): {text}, " in Needs(seconds, 1.0, 1.0).text()


def test_the_estimate_is_positive_and_grows_with_the_work(params: Params, rate: Callable[[float], None]) -> None:
    needs = estimate(params)
    assert needs is not None
    assert min(needs.seconds, needs.memory, needs.disk) > 0

    def needed(section: str, **values: object) -> Needs:
        changed = getattr(params, section).model_copy(update=values)
        result = estimate(params.model_copy(update={section: changed}))
        assert result is not None
        return result

    assert needed("ppo", iterations=160).seconds > needs.seconds
    assert needed("generate", samples=80).seconds > needs.seconds
    small = {name: getattr(params, name).model_copy(update={"micro_batch_size": 1}) for name in ("ppo", "fit")}
    assert estimate(params.model_copy(update=small)).memory < needs.memory  # type: ignore[union-attr]
    fewer = estimate(params.model_copy(update={"seeds": [1]}))
    assert fewer is not None
    assert (fewer.seconds < needs.seconds, fewer.disk < needs.disk) == (True, True)
    rate(1e8)
    slow = estimate(params)
    assert slow is not None
    assert slow.seconds > needs.seconds
    given = estimate(params.model_copy(update={"reward": params.reward.model_copy(update={"source": "x"})}))
    assert given is not None
    assert given.seconds < slow.seconds
    for judge in ("second_scorer", "language_model"):
        none = getattr(params.judge, judge).model_copy(update={"source": "none"})
        without = estimate(params.model_copy(update={"judge": params.judge.model_copy(update={judge: none})}))
        assert without is not None
        assert without.seconds < slow.seconds


def test_every_model_reads_the_classifiers_rows(params: Params, rate: Callable[[float], None]) -> None:
    rate(1e6 / EFFICIENCY)
    shape = model_shape(params)
    assert shape is not None
    asked = params.utility.classification.model_copy(update={"rows": 10, "test_rows": 6, "tokens": 4})
    with_it = params.model_copy(update={"utility": params.utility.model_copy(update={"classification": asked})})
    needs = [estimate(params), estimate(with_it)]
    models = 2 + 5 * len(params.seeds)  # base and SFT; three methods of PPO and two fits for each seed
    assert needs[0] is not None and needs[1] is not None
    assert needs[1].seconds - needs[0].seconds == pytest.approx(2 * shape.parameters * models * 16 * 4 / 1e6)


def test_the_estimate_says_how_rough_it_is() -> None:
    text = Needs(seconds=630.0, memory=2.04 * GIB, disk=0.5 * GIB).text()
    assert "within a factor of two): 10 min, 2.0 GiB of memory, 0.5 GiB of disk" in text
    assert ": 1 min," in Needs(1.0, 1.0, 1.0).text()


def test_what_clearly_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(0, 0, 3 * GIB))
    fits = Needs(seconds=1.0, memory=4.0 * GIB, disk=6.0 * GIB)  # half of each estimate is there
    refuse_if_short(fits, tmp_path, free_memory=2.0 * GIB)
    refuse_if_short(fits, tmp_path, free_memory=None)  # a system that does not tell
    with pytest.raises(UserError, match="about 4.0 GiB of memory are needed and 1.9 GiB are free; lower ppo.micro"):
        refuse_if_short(fits, tmp_path, free_memory=1.9 * GIB)
    with pytest.raises(UserError, match="about 6.2 GiB of disk are needed and 3.0 GiB are free in .*; free some room"):
        refuse_if_short(Needs(1.0, 1.0, 6.2 * GIB), tmp_path, free_memory=None)


def test_this_machine_has_memory_and_speed(params: Params) -> None:
    memory = available_memory()
    assert memory is None or memory > 0.01 * GIB
    assert matmul_rate(params) > 1e7


def test_a_system_without_proc_tells_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "is_file", lambda path: False)
    assert available_memory() is None


def test_fits_take_time_by_their_answers_and_rounds(params: Params, rate: Callable[[float], None]) -> None:
    def seconds(methods: dict[str, object], **values: object) -> float:
        named = params.methods.model_copy(update=methods)
        needs = estimate(params.model_copy(update={"methods": named, "fit": params.fit.model_copy(update=values)}))
        assert needs is not None
        return needs.seconds

    none, one = seconds({"fit": {}}), seconds({"fit": {"mean_fit": {}}}, rounds=1)
    two = seconds({"fit": {"mean_fit": {}, "cvar_fit": {}}}, rounds=1)
    assert two - one == pytest.approx(one - none)
    assert seconds({"fit": {"mean_fit": {}}}, rounds=3) > one
    assert seconds({"fit": {"mean_fit": {}}}, rounds=1, calibrated=False) < one


def test_regularised_fine_tuning_takes_time_by_its_rows_and_by_the_rounds_that_learn(
    params: Params, rate: Callable[[float], None]
) -> None:
    def seconds(**values: object) -> float:
        tuned = {"x": {"by": "regularised", "prompts": 100, "samples": 2, **values}}
        needs = estimate(params.model_copy(update={"methods": params.methods.model_copy(update={"tuned": tuned})}))
        assert needs is not None
        return needs.seconds

    none, two, three = seconds(penalty=0), seconds(rounds=2), seconds(rounds=3)
    assert three - two == pytest.approx((two - none) / 2)
    assert seconds(rounds=3, lag=1) == pytest.approx(two)
    assert seconds(rounds=3, head={"epochs": 9}) > three
    plain = params.methods.model_copy(update={"tuned": {"x": {"by": "supervised"}}})
    supervised = estimate(params.model_copy(update={"methods": plain}))
    assert supervised is not None
    assert none > supervised.seconds
