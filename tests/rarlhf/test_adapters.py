"""Adapters on one backbone: what is shared, what is trained, what is kept, and what plain peft makes of a folder."""

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from shutil import rmtree
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import rarlhf.rlhf
import rarlhf.sft
from rarlhf.adapters import POLICY, attach, base_of, is_adapter, storage_in_training
from rarlhf.backbone import AdapterModel, ModelFolders, WholeModel, load_trainable
from rarlhf.checkpoint import load_checkpoint
from rarlhf.errors import UserError
from rarlhf.loading import load_causal_lm, save_model
from rarlhf.params import ModelParams, Params
from rarlhf.policy import Episodes, Policy, Sampling, reset_value_head, response_logprobs, response_states, sampling_of
from rarlhf.ppo import PPOTrainer
from rarlhf.progress import SilentRecorder
from rarlhf.recompute import recompute_blocks
from rarlhf.reference import frozen
from rarlhf.rlhf import train_policy
from rarlhf.rollout import query_batch
from rarlhf.runtime import Machine, generator
from rarlhf.sampling import left_pad, sample_responses
from rarlhf.sft import train_sft

TEXTS = ["we liked the film .", "we saw the music .", "we regret the old plot ."] * 4
RECORDS = [{"text": text} for text in TEXTS]
QUERIES = [[5 + i] * (1 + i % 3) for i in range(14)]
MODES = {"lora": {"adapter": "lora"}, "int8": {"adapter": "lora", "quantization": "int8"}}
RATIO = {"lora": 1e-5, "int8": 0.02}  # how far the first ratio of an update may be from 1
CPU = torch.device("cpu")
END = {"bos_token_id": 0, "eos_token_id": 0}
PPO = {
    "iterations": 3,
    "batch_size": 6,
    "mini_batch_size": 3,
    "micro_batch_size": 3,
    "epochs": 2,
    "lr": 0.01,
    "value_warmup": 1,
    "max_new_tokens": 5,
    "checkpoint_every": 2,
}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """bitsandbytes says at every matrix product that it rounds to float16."""
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


def gpt2(size: int) -> PreTrainedModel:
    shape = {"vocab_size": size, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.15}
    return GPT2LMHeadModel(GPT2Config(**shape, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **END))


def gptj(size: int) -> PreTrainedModel:
    shape = {"vocab_size": size, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4}
    return GPTJForCausalLM(GPTJConfig(**shape, initializer_range=0.15, tie_word_embeddings=False, **END))


@torch.no_grad()
def with_outliers(lm: PreTrainedModel) -> PreTrainedModel:
    """LLM.int8 treats columns with a value above 6 apart: with such columns, companions in a batch matter."""
    for block in lm.transformer.h:
        block.ln_1.weight[:3] *= torch.tensor([3.0, 4.0, 5.0])
    return lm


def sharp(base: Path) -> PretrainedConfig:
    """The configuration of the model in `base` with larger initial weights."""
    config = load_causal_lm(str(base))[0].config
    config.initializer_range = 0.4
    return config


@pytest.fixture(params=[gpt2, gptj], ids=lambda make: make.__name__)
def base(
    request: pytest.FixtureRequest,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """`models/base` in a folder of its own, which becomes the current one."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(3)
    save_model(with_outliers(request.param(len(tokenizer))), tokenizer, Path("models/base"))
    return Path("models/base")


@pytest.fixture(params=list(MODES))
def mode(request: pytest.FixtureRequest) -> str:
    return request.param


def section(params: Params, mode: str, **values: object) -> ModelParams:
    lora = params.model.lora.model_copy(update={"r": 4, "alpha": 8})
    return params.model.model_copy(update={"lora": lora} | MODES[mode] | values)


@pytest.fixture
def small(params: Params) -> Params:
    sft = params.sft.model_copy(update={"tokens": 12, "epochs": 4, "batch_size": 4, "lr": 0.02})
    risk = params.risk.model_copy(update={"warmup": 1, "rho": 1.0, "alpha": 0.5})
    return params.model_copy(update={"ppo": params.ppo.model_copy(update=PPO), "sft": sft, "risk": risk})


@pytest.fixture(scope="session")
def adapters() -> dict[tuple[str, str], dict[str, bytes]]:
    """Files of the adapters that SFT has trained so far, by kind of model and mode."""
    return {}


@pytest.fixture
def sft(
    base: Path, mode: str, small: Params, machine: Machine, adapters: dict[tuple[str, str], dict[str, bytes]]
) -> Path:
    """An adapter that SFT has trained."""
    folder, key = Path("models/sft"), (json.loads((base / "config.json").read_text())["model_type"], mode)
    if key not in adapters:
        train_sft(RECORDS, base, folder, section(small, mode), small.sft, machine, SilentRecorder())
        adapters[key] = {path.name: path.read_bytes() for path in folder.iterdir()}
    folder.mkdir(exist_ok=True)
    for name, content in adapters[key].items():
        (folder / name).write_bytes(content)
    return folder


def lengths(texts: Sequence[str]) -> Tensor:
    return torch.tensor([float(len(text)) for text in texts])


def make_trainer(start: AdapterModel | WholeModel, params: Params, machine: Machine) -> PPOTrainer:
    policy = Policy(start.lm, sampling_of(params, start.tokenizer.eos_token_id))
    reset_value_head(policy.value_head, generator("value_head", 1))
    sections = (params.ppo, params.kl, params.risk)
    return PPOTrainer(policy, start.ref_policy(), start.tokenizer, lengths, *sections, 1, machine, SilentRecorder())


@pytest.fixture
def episodes() -> Episodes:
    tokens, mask = left_pad(QUERIES[:5], 0, CPU)
    draws = generator("test")
    responses = torch.randint(3, 200, (5, 6), generator=draws)
    return Episodes(tokens, mask, responses, torch.ones_like(responses, dtype=torch.bool))


@torch.no_grad()
def logprobs(lm: PreTrainedModel, episodes: Episodes) -> Tensor:
    return response_logprobs(lm, episodes, Sampling(1.0, 0, 6, 0))


def reference(trainer: PPOTrainer, episodes: Episodes) -> Tensor:
    with trainer.ref_policy() as lm:
        return logprobs(lm, episodes)


# SFT


def test_sft_trains_an_adapter_and_nothing_else(base: Path, mode: str, sft: Path, small: Params) -> None:
    assert {path.name for path in sft.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not (sft / "model.safetensors").exists()
    assert (sft / "adapter_model.safetensors").stat().st_size < (base / "model.safetensors").stat().st_size / 4
    config = json.loads((sft / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "models/base"  # no path of this machine
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 8, 0)
    assert storage_in_training(sft) == ("float32", "int8" if mode == "int8" else "none", 6.0)
    loaded = AdapterModel(sft, section(small, mode), 1, CPU)
    trained = {name: value for name, value in loaded.model.named_parameters() if "lora_B" in name}
    assert len(trained) > 0
    assert all(value.dtype == torch.float32 and value.abs().max() > 1e-3 for value in trained.values())


def test_sft_learns_as_much_where_the_backbone_is_quantised(
    base: Path, small: Params, machine: Machine, tmp_path: Path
) -> None:
    curves = {
        mode: train_sft(RECORDS, base, Path(mode), section(small, mode), small.sft, machine, SilentRecorder())
        for mode in MODES
    }
    for curve in curves.values():
        assert curve[-1]["loss"] < 0.9 * curve[0]["loss"]
    assert curves["int8"][-1]["loss"] == pytest.approx(curves["lora"][-1]["loss"], rel=0.05)


def test_sft_gives_equal_bytes_and_recomputing_the_same_adapter(
    base: Path, mode: str, sft: Path, small: Params, machine: Machine
) -> None:
    for name, checkpointing in (("again", False), ("recomputed", True)):
        model = section(small, mode, gradient_checkpointing=checkpointing)
        train_sft(RECORDS, base, Path(name), model, small.sft, machine, SilentRecorder())
    files = ("adapter_config.json", "adapter_model.safetensors", "backbone.json")
    assert all((Path("again") / file).read_bytes() == (sft / file).read_bytes() for file in files)
    one, other = (peft.load_peft_weights(str(folder), device="cpu") for folder in (sft, "recomputed"))
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-4)


# One backbone


def test_policy_reference_and_value_head_are_on_one_backbone(
    sft: Path, mode: str, small: Params, machine: Machine, base: Path
) -> None:
    start = AdapterModel(sft, section(small, mode), 1, CPU)
    trainer = make_trainer(start, small, machine)
    with trainer.ref_policy() as lm:
        assert lm is trainer.policy.lm
    whole = load_causal_lm(str(base))[0].num_parameters()
    adapters = [value.numel() for name, value in start.lm.named_parameters() if "lora_" in name]
    held = sum(value.numel() for value in trainer.policy.parameters())
    assert held == whole + sum(adapters) + 16 + 1  # the value head's weights and bias
    trained = sum(value.numel() for group in trainer.optimizer.param_groups for value in group["params"])
    assert trained == sum(adapters) // 2 + 17  # the policy's adapter, not the reference's
    held_bytes = sum(value.numel() * value.itemsize for value in start.lm.parameters())
    if mode == "int8":  # a quarter for the matrices of the blocks: nothing is upcast
        blocks = sum(value.numel() for value in start.lm.parameters() if value.dtype == torch.int8)
        assert blocks == 2 * 12 * 16 * 16
        assert held_bytes == blocks + 4 * (whole + sum(adapters) - blocks)


def test_the_first_ratio_is_one_and_the_reference_stays(
    sft: Path, mode: str, small: Params, machine: Machine, episodes: Episodes
) -> None:
    trainer = make_trainer(AdapterModel(sft, section(small, mode), 1, CPU), small, machine)
    start = logprobs(trainer.policy.lm, episodes)
    assert torch.equal(reference(trainer, episodes), start)
    rollout = trainer.collect_rollout(query_batch(QUERIES, 0, 6, 1), 1)
    assert rollout.log_ratio.abs().max() == 0
    for rows in ([5, 0, 3], [1]):  # other companions than in the rollout, which LLM.int8 feels
        with torch.no_grad():
            again = trainer.policy(rollout.episodes.rows(torch.tensor(rows))).logprobs
        mask = rollout.episodes.response_mask[rows]
        ratio = (again - rollout.logprobs[rows])[mask].exp()
        assert (ratio - 1).abs().max() <= RATIO[mode]
    trainer.train(QUERIES, Path("checkpoint.safetensors"))
    assert torch.equal(reference(trainer, episodes), start)
    assert (logprobs(trainer.policy.lm, episodes) - start).abs().max() > 0.01


def test_from_a_whole_model_the_reference_is_the_bare_base(
    base: Path, mode: str, small: Params, machine: Machine, episodes: Episodes
) -> None:
    start = AdapterModel(base, section(small, mode), 1, CPU)
    assert len(start.model.peft_config) == 1
    before = logprobs(start.lm, episodes)
    trainer = make_trainer(start, small, machine)
    trainer.train(QUERIES, Path("checkpoint.safetensors"))
    assert torch.equal(reference(trainer, episodes), before)
    assert (logprobs(trainer.policy.lm, episodes) - before).abs().max() > 0.01
    trainable = [name for name, value in start.lm.named_parameters() if value.requires_grad]
    assert trainable
    assert all(f".{POLICY}." in name for name in trainable)
    if mode == "lora":
        torch.testing.assert_close(before, logprobs(load_causal_lm(str(base))[0], episodes), atol=1e-5, rtol=0)


def test_the_reference_is_left_also_where_it_raises(sft: Path, mode: str, small: Params) -> None:
    start = AdapterModel(sft, section(small, mode), 1, CPU)
    ref_policy = start.ref_policy()
    trained = {name for name, value in start.lm.named_parameters() if value.requires_grad}
    with pytest.raises(KeyError), ref_policy():
        assert start.model.active_adapter == "reference"
        assert not any(value.requires_grad for value in start.lm.parameters())
        raise KeyError
    assert start.model.active_adapter == POLICY
    assert {name for name, value in start.lm.named_parameters() if value.requires_grad} == trained


def test_opened_folders_share_the_backbone_of_their_base(
    base: Path, sft: Path, mode: str, small: Params, episodes: Episodes
) -> None:
    folders = ModelFolders(section(small, mode), CPU)
    bare, tuned, again = (folders.open(folder) for folder in (base, sft, sft))
    with bare() as lm:
        before = logprobs(lm, episodes)
    with tuned() as one:
        values = logprobs(one, episodes)
    with again() as other:
        assert torch.equal(logprobs(other, episodes), values)
    with bare() as lm:
        assert torch.equal(logprobs(lm, episodes), before)
    assert one is other is lm
    assert (values - before).abs().max() > 0.01


def test_whole_models_are_opened_one_by_one(lm_folder: Path, params: Params, episodes: Episodes) -> None:
    folders = ModelFolders(params.model, CPU)
    with folders.open(lm_folder)() as one, folders.open(lm_folder)() as other:
        assert one is not other
        assert torch.equal(logprobs(one, episodes), logprobs(other, episodes))
        assert not any(value.requires_grad for value in one.parameters())


def test_dropout_is_off_wherever_log_probabilities_are_compared(
    base: Path, small: Params, machine: Machine, episodes: Episodes
) -> None:
    lora = small.model.lora.model_copy(update={"r": 4, "dropout": 0.5})
    model = small.model.model_copy(update={"adapter": "lora", "lora": lora})
    train_sft(RECORDS, base, Path("sft"), model, small.sft, machine, SilentRecorder())
    trainer = make_trainer(AdapterModel(Path("sft"), model, 1, CPU), small, machine)
    assert torch.equal(logprobs(trainer.policy.lm, episodes), reference(trainer, episodes))
    trainer.policy.train()  # negative control
    assert not torch.equal(logprobs(trainer.policy.lm, episodes), reference(trainer, episodes))


def cached_and_full(start: AdapterModel) -> float:
    """Largest difference between the probability a token was drawn with and that of the full pass, in nats."""
    sampling = Sampling(1.0, 0, 8, start.tokenizer.eos_token_id)
    tokens, mask = left_pad(QUERIES, 0, CPU)
    seen = []
    head = start.lm.get_output_embeddings()
    hook = head.register_forward_hook(lambda module, inputs, output: seen.append(output[:, -1]))
    episodes = sample_responses(start.lm, tokens, mask, sampling, torch.rand(14, 8, generator=generator("draws")))
    hook.remove()
    cached = torch.stack(seen, dim=1).log_softmax(dim=-1).gather(-1, episodes.responses.unsqueeze(-1)).squeeze(-1)
    return float((cached - logprobs(start.lm, episodes))[episodes.response_mask].abs().max())


def test_cached_decoding_agrees_with_the_full_pass(sft: Path, mode: str, small: Params) -> None:
    difference = cached_and_full(AdapterModel(sft, section(small, mode), 1, CPU))
    assert difference <= {"lora": 1e-5, "int8": 0.05}[mode]


def test_where_weights_alone_are_8_bit_companions_do_not_matter(
    base: Path, small: Params, tokenizer: PreTrainedTokenizerBase
) -> None:
    torch.manual_seed(0)  # a model sharp enough that LLM.int8 feels them by much
    with_outliers(type(load_causal_lm(str(base))[0])(sharp(base))).save_pretrained(base)
    off = {
        threshold: cached_and_full(AdapterModel(base, section(small, "int8", int8_threshold=threshold), 1, CPU))
        for threshold in (6.0, 1e-9)
    }
    assert off[6.0] > 0.01  # negative control
    assert off[1e-9] < 1e-4


# Folders


def test_plain_peft_loads_the_folder(
    base: Path, sft: Path, mode: str, small: Params, episodes: Episodes, recwarn: pytest.WarningsRecorder
) -> None:
    start = AdapterModel(sft, section(small, mode), 1, CPU)
    values = logprobs(start.lm, episodes)
    plain = AutoModelForCausalLM.from_pretrained("models/base", dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        one = peft.PeftModel.from_pretrained(plain, "models/sft").get_base_model()
        other = peft.AutoPeftModelForCausalLM.from_pretrained("models/sft", dtype=torch.float32).get_base_model()
    tolerance = {"lora": 1e-5, "int8": 0.1}[mode]  # plain peft loads the base as it is, not quantised
    for lm in (one, other):
        torch.testing.assert_close(logprobs(lm.eval(), episodes), values, atol=tolerance, rtol=0)


def test_a_saved_policy_is_the_trained_one(
    sft: Path, mode: str, small: Params, machine: Machine, episodes: Episodes
) -> None:
    start = AdapterModel(sft, section(small, mode), 1, CPU)
    make_trainer(start, small, machine).train(QUERIES, Path("checkpoint.safetensors"))
    start.save(Path("models/rlhf/1"))
    assert base_of(Path("models/rlhf/1")) == Path("models/base")
    values = logprobs(start.lm, episodes)
    assert torch.equal(logprobs(AdapterModel(Path("models/rlhf/1"), section(small, mode), 1, CPU).lm, episodes), values)
    assert (logprobs(AdapterModel(sft, section(small, mode), 1, CPU).lm, episodes) - values).abs().max() > 0.01


def test_the_base_is_found_from_anywhere_and_missed_in_one_line(
    base: Path, small: Params, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_sft(RECORDS, base, Path("models/sft"), section(small, "lora"), small.sft, machine, SilentRecorder())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert base_of(tmp_path / "models" / "sft").samefile(tmp_path / "models" / "base")
    monkeypatch.chdir(tmp_path)
    rmtree("models/base")
    with pytest.raises(
        UserError, match=r"models/sft is an adapter of the base model 'models/base', which is not there"
    ):
        AdapterModel(Path("models/sft"), section(small, "lora"), 1, CPU)


def test_an_adapter_is_not_taken_for_a_whole_model(base: Path, small: Params, machine: Machine) -> None:
    train_sft(RECORDS, base, Path("sft"), section(small, "lora"), small.sft, machine, SilentRecorder())
    assert is_adapter(Path("sft"))
    assert not is_adapter(base)
    with pytest.raises(UserError, match="sft is an adapter, and a whole model is needed: set model.adapter: lora, or"):
        load_trainable(Path("sft"), small.model, 1, CPU)


def test_an_adapter_that_does_not_fit_is_refused(
    base: Path, small: Params, machine: Machine, tokenizer: PreTrainedTokenizerBase
) -> None:
    train_sft(RECORDS, base, Path("sft"), section(small, "lora"), small.sft, machine, SilentRecorder())
    wide = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=24, n_layer=1, n_head=2))
    with pytest.raises(UserError, match="the adapter in sft does not fit the base model"):
        attach(wide, Path("sft"), POLICY)
    deep = type(load_causal_lm(str(base))[0])  # a layer more than the adapter knows
    config = load_causal_lm(str(base))[0].config
    config.n_layer = 3
    with pytest.raises(UserError, match="does not fit the base model .*missing adapter keys"):
        attach(deep(config), Path("sft"), POLICY)
    (Path("sft") / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"sft is not a folder of an adapter: it must hold adapter_config.json and"):
        attach(wide, Path("sft"), POLICY)


def test_unknown_target_modules_are_refused_with_the_names_there_are(base: Path, small: Params) -> None:
    names = {
        "gpt2": "GPT2LMHeadModel has c_attn, c_fc, c_proj",
        "gptj": "GPTJForCausalLM has fc_in, fc_out, k_proj, out_proj, q_proj, v_proj",
    }[json.loads((base / "config.json").read_text())["model_type"]]
    known = names.rpartition(" ")[2]
    for mode in MODES:
        lora = small.model.lora.model_copy(update={"target_modules": [known, "query", "lm_head"]})
        with pytest.raises(UserError) as caught:
            AdapterModel(base, section(small, mode).model_copy(update={"lora": lora}), 1, CPU)
        assert str(caught.value) == f"model.lora.target_modules: no module is called query, lm_head; {names}"
        lora = lora.model_copy(update={"target_modules": [known]})
        start = AdapterModel(base, section(small, mode).model_copy(update={"lora": lora}), 1, CPU)
        assert all(f".{known}." in name for name, value in start.lm.named_parameters() if value.requires_grad)


def test_an_architecture_without_a_default_needs_target_modules(
    base: Path, small: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = base / "config.json"
    kind = json.loads(config.read_text())["model_type"]
    mapping = "peft.tuners.lora.model.LoraModel.target_module_mapping"
    monkeypatch.setattr(mapping, {})
    with pytest.raises(UserError, match="target_modules: no default is known for this model; GPT"):
        AdapterModel(base, section(small, "lora"), 1, CPU)
    assert kind in ("gpt2", "gptj")


# Checkpoints


def test_a_killed_run_goes_on_to_the_same_bytes(sft: Path, mode: str, small: Params, machine: Machine) -> None:
    def train(name: str, score: Callable[[Sequence[str]], Tensor]) -> bytes:
        params = small.model_copy(update={"model": section(small, mode)})
        places = (sft, Path(name), Path(f"{name}.safetensors"))
        train_policy(QUERIES, *places, score, params, 1, machine, SilentRecorder())
        return (Path(name) / "adapter_model.safetensors").read_bytes()

    calls = 0

    def failing(texts: Sequence[str]) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:  # one call of the warm-up, and iterations 1, 2 and 3
            raise KeyboardInterrupt
        return lengths(texts)

    whole = train("whole", lengths)
    with pytest.raises(KeyboardInterrupt):
        train("killed", failing)
    assert Path("killed.safetensors").is_file()
    assert train("killed", lengths) == whole
    assert (sft / "adapter_model.safetensors").read_bytes() != whole


def test_a_checkpoint_holds_what_is_trained_alone(sft: Path, mode: str, small: Params, machine: Machine) -> None:
    start = AdapterModel(sft, section(small, mode), 1, CPU)
    make_trainer(start, small, machine).train(QUERIES, Path("checkpoint.safetensors"))
    loaded = load_checkpoint(Path("checkpoint.safetensors"))
    assert loaded is not None
    weights = {name.removeprefix("policy/") for name in loaded[0] if name.startswith("policy/")}
    trained = {f"lm.{name}" for name, value in start.lm.named_parameters() if value.requires_grad}
    assert weights == trained | {"value_head.weight", "value_head.bias"}
    elements = sum(value.numel() for value in start.lm.parameters() if value.requires_grad) + 17
    size = sum(tensor.numel() for name, tensor in loaded[0].items() if not name.endswith("/step"))
    assert size == 3 * elements  # each with Adam's two moments
    names = json.loads(json.dumps(sorted(loaded[0])))
    header = len(json.dumps(names)) * 2 + 20_000  # names, shapes and the records
    assert Path("checkpoint.safetensors").stat().st_size < 4 * 3 * elements + header


# Gradient checkpointing


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "adapter"])
def test_recomputing_changes_no_number_and_remembers_less(
    whole: bool, base: Path, mode: str, small: Params, machine: Machine
) -> None:
    def step(recompute: bool) -> tuple[list[Tensor], int]:
        start = WholeModel(base, CPU) if whole else AdapterModel(base, section(small, mode), 1, CPU)
        if recompute:
            recompute_blocks(start.lm)
        trainer = make_trainer(start, small, machine)
        rollout = trainer.collect_rollout(query_batch(QUERIES, 0, 6, 1), 1)
        kept = 0

        def remember(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.numel() * tensor.itemsize
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
            response_states(start.lm, rollout.episodes)
        output = trainer.policy(rollout.episodes)
        output.logprobs.sum().backward()
        gradients = [value.grad for value in start.lm.parameters() if value.grad is not None]
        return [output.logprobs.detach(), rollout.logprobs, *gradients], kept

    (plain, much), (recomputed, less) = step(False), step(True)
    assert len(plain) == len(recomputed) > 3
    for one, other in zip(plain, recomputed, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-6, atol=1e-6)
    assert less < 0.3 * much


@pytest.mark.parametrize("asked", [True, False])
def test_training_recomputes_where_it_is_asked_to(
    asked: bool, base: Path, small: Params, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    sft_config = rarlhf.sft.SFTConfig

    def look(**keywords: Any) -> Any:
        seen.append(keywords["gradient_checkpointing"])
        return sft_config(**keywords)

    monkeypatch.setattr(rarlhf.sft, "SFTConfig", look)
    monkeypatch.setattr(rarlhf.rlhf, "recompute_blocks", lambda lm: seen.append(True))
    params = small.model_copy(update={"model": section(small, "lora", gradient_checkpointing=asked)})
    train_sft(RECORDS, base, Path("sft"), params.model, small.sft, machine, SilentRecorder())
    places = (Path("sft"), Path("rlhf"), Path("checkpoint.safetensors"))
    train_policy(QUERIES, *places, lengths, params, 1, machine, SilentRecorder())
    assert seen == ([True, True] if asked else [False])


def test_what_trl_rounds_is_float32_again(
    base: Path, small: Params, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds: list[set[torch.dtype]] = []

    def look(name: str, build: Callable[[str], Any], steps: int, recorder: object) -> list[dict[str, float]]:
        model = build("scratch").model
        kinds.append({value.dtype for value in model.parameters() if value.requires_grad})
        return []

    monkeypatch.setattr(rarlhf.sft, "run_trainer", look)
    train_sft(RECORDS, base, Path("sft"), section(small, "int8"), small.sft, machine, SilentRecorder())
    assert kinds == [{torch.float32}]


def test_a_model_without_blocks_cannot_be_recomputed(small: Params) -> None:
    with pytest.raises(UserError, match="Linear has no blocks to recompute; set it to false"):
        recompute_blocks(torch.nn.Linear(2, 2))


# Storage


def test_a_bfloat16_backbone_stays_so_and_its_adapter_is_float32(
    base: Path, small: Params, machine: Machine, episodes: Episodes
) -> None:
    model = section(small, "lora", dtype="bfloat16")
    train_sft(RECORDS, base, Path("sft"), model, small.sft, machine, SilentRecorder())
    trainer = make_trainer(AdapterModel(Path("sft"), model, 1, CPU), small, machine)
    trainer.train(QUERIES, Path("checkpoint.safetensors"))
    kinds = {("lora_" in name, value.dtype) for name, value in trainer.policy.lm.named_parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    assert (logprobs(trainer.policy.lm, episodes) - reference(trainer, episodes)).abs().max() > 0.01


def test_a_frozen_model_is_its_own_reference(lm_folder: Path, episodes: Episodes) -> None:
    lm = load_causal_lm(str(lm_folder))[0].train()
    with frozen(lm)() as opened:
        assert opened is lm
    assert not lm.training
    assert not any(value.requires_grad for value in lm.parameters())
