"""Folders of adapters: what plain peft makes of them, what is found, and what is refused."""

import json
import warnings
from pathlib import Path
from shutil import copytree, rmtree

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

from rarlhf.config.errors import UserError
from rarlhf.config.params import Params
from rarlhf.decoding.writing import open_model
from rarlhf.messages.progress import SilentRecorder
from rarlhf.models.adapters import POLICY, attach
from rarlhf.models.backbone import AdapterModel, load_trainable
from rarlhf.models.episodes import Episodes
from rarlhf.models.files import base_of, is_adapter
from rarlhf.models.loading import load_causal_lm
from rarlhf.system.machine import Machine
from rarlhf.training.sft import train_sft
from tests.rarlhf.models.adapters.tiny import CPU, MODES, QUERIES, RECORDS, logprobs, make_trainer, section


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


def test_an_adapters_weights_are_all_there_and_no_others(base: Path, small: Params) -> None:
    """On a bare backbone and on one that has an adapter: peft warns of a part of the first, and of nothing else."""
    AdapterModel(base, section(small, "lora"), 1, CPU).save(Path("whole"))
    whole = load_file("whole/adapter_model.safetensors")
    key = min(whole)
    faults = {
        f"missing adapter keys: {key})": {name: value for name, value in whole.items() if name != key},
        "not part of it: base_model.model.more.lora_A.weight)": whole
        | {"base_model.model.more.lora_A.weight": whole[key].clone()},
        f"not finite: {key})": whole | {key: whole[key] / 0},
        "size mismatch": whole | {key: whole[key][:1]},
    }
    start = AdapterModel(Path("whole"), section(small, "lora"), 1, CPU)
    for number, (message, weights) in enumerate(faults.items()):
        copytree("whole", f"broken{number}")
        save_file(weights, f"broken{number}/adapter_model.safetensors")
        for backbone in (load_causal_lm(str(base))[0], start.model):
            with pytest.raises(UserError) as caught:
                attach(backbone, Path(f"broken{number}"), f"name{number}")
            assert str(caught.value).startswith(f"the adapter in broken{number} does not fit the base model {base} (")
            assert message in str(caught.value)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "backbone.json"])
def test_a_file_of_an_adapter_that_is_cut_short_is_one_line(name: str, base: Path, small: Params) -> None:
    AdapterModel(base, section(small, "lora"), 1, CPU).save(Path("cut"))
    content = Path("cut", name).read_bytes()
    Path("cut", name).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="cut") as caught:
        open_model(Path("cut"), CPU)
    assert "\n" not in str(caught.value)


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


def test_target_modules_are_written_in_one_order(base: Path, small: Params) -> None:
    """peft keeps them as a set, whose order differs between processes."""
    names = {
        "gpt2": ["c_attn", "c_fc", "c_proj"],
        "gptj": ["fc_in", "fc_out", "k_proj", "out_proj", "q_proj", "v_proj"],
    }[json.loads((base / "config.json").read_text())["model_type"]]
    lora = small.model.lora.model_copy(update={"target_modules": names[::-1]})
    AdapterModel(base, section(small, "lora").model_copy(update={"lora": lora}), 1, CPU).save(Path("new"))
    assert json.loads(Path("new/adapter_config.json").read_text())["target_modules"] == names


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
