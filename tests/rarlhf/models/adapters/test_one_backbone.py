"""Policy, reference policy and opened models on one backbone."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from rarlhf.config.params import Params
from rarlhf.data.batches import query_batch
from rarlhf.messages.progress import SilentRecorder
from rarlhf.models.adapters import POLICY
from rarlhf.models.backbone import AdapterModel, ModelFolders
from rarlhf.models.episodes import Episodes
from rarlhf.models.loading import load_causal_lm, save_model
from rarlhf.models.reference import frozen
from rarlhf.system.machine import Machine
from rarlhf.training.sft import train_sft
from tests.rarlhf.models.adapters.tiny import CPU, QUERIES, RECORDS, gpt2, logprobs, make_trainer, reference, section

RATIO = 1e-5  # how far the first ratio of an update may be from 1, at the preset's threshold of 8 bits too


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
    for rows in ([5, 0, 3], [1]):  # other companions than in the rollout
        with torch.no_grad():
            again = trainer.policy(rollout.episodes.rows(torch.tensor(rows))).logprobs
        mask = rollout.episodes.response_mask[rows]
        ratio = (again - rollout.logprobs[rows])[mask].exp()
        assert (ratio - 1).abs().max() <= RATIO
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


@torch.no_grad()
def test_two_adapters_are_open_at_the_same_time(sft: Path, mode: str, small: Params, episodes: Episodes) -> None:
    second = AdapterModel(sft, section(small, mode), 1, CPU)
    for name, value in second.lm.named_parameters():
        if "lora_B" in name:
            value.mul_(-1.0)
    second.save(Path("models/second"))
    folders = ModelFolders(section(small, mode), CPU)
    first = folders.open(sft)
    with first() as lm:
        alone = logprobs(lm, episodes)
    other = folders.open(Path("models/second"))
    with first() as lm:
        assert torch.equal(logprobs(lm, episodes), alone)
    with other() as lm:
        assert (logprobs(lm, episodes) - alone).abs().max() > 0.01


def test_a_folder_of_another_base_is_opened_on_that_base(
    base: Path, small: Params, tokenizer: PreTrainedTokenizerBase, episodes: Episodes
) -> None:
    torch.manual_seed(7)
    save_model(gpt2(len(tokenizer)), tokenizer, Path("models/other"))
    folders = ModelFolders(section(small, "lora"), CPU)
    for folder in (base, Path("models/other"), base):
        with folders.open(folder)() as lm:
            assert torch.equal(logprobs(lm, episodes), logprobs(load_causal_lm(str(folder))[0], episodes))


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


def test_a_frozen_model_is_its_own_reference(lm_folder: Path, episodes: Episodes) -> None:
    lm = load_causal_lm(str(lm_folder))[0].train()
    with frozen(lm)() as opened:
        assert opened is lm
    assert not lm.training
    assert not any(value.requires_grad for value in lm.parameters())
