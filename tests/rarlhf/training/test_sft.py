"""Supervised fine-tuning: what is learned, and that it is the same each time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

import rarlhf.training.sft
from rarlhf.config.errors import UserError
from rarlhf.config.load import load_params
from rarlhf.config.params import Params, SFTParams
from rarlhf.messages.progress import SilentRecorder
from rarlhf.models.loading import load_causal_lm
from rarlhf.system.machine import Machine
from rarlhf.training.sft import train_sft

TEXTS = ["we liked the film .", "we saw the music ."] * 8
RECORDS = [{"text": text} for text in TEXTS]
END = 0
WHOLE = load_params(Path(__file__).parents[3] / "presets" / "tiny.yaml").model


@pytest.fixture
def section(params: Params) -> SFTParams:
    return params.sft.model_copy(update={"tokens": 12, "epochs": 3, "batch_size": 4, "micro_batch_size": 4, "lr": 0.01})


def loss(folder: Path, text: str) -> float:
    """Mean negative log-likelihood of the text and its end."""
    model, tokenizer = load_causal_lm(str(folder))
    ids = torch.tensor([[*tokenizer(text)["input_ids"], END]])
    with torch.no_grad():
        return float(model(ids, labels=ids).loss)


def test_fine_tuning_lowers_the_loss_and_gives_equal_bytes(
    section: SFTParams, lm_folder: Path, machine: Machine, tmp_path: Path
) -> None:
    curves = [
        train_sft(RECORDS, lm_folder, tmp_path / name, WHOLE, section, machine, SilentRecorder()) for name in "ab"
    ]
    assert curves[0] == curves[1]
    assert curves[0][-1]["loss"] < curves[0][0]["loss"]
    assert curves[0][-1]["step"] == 3 * 16 / 4
    assert loss(tmp_path / "a", TEXTS[0]) < 0.7 * loss(lm_folder, TEXTS[0])
    for name in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    other = section.model_copy(update={"seed": section.seed + 1})
    train_sft(RECORDS, lm_folder, tmp_path / "c", WHOLE, other, machine, SilentRecorder())
    assert (tmp_path / "a" / "model.safetensors").read_bytes() != (tmp_path / "c" / "model.safetensors").read_bytes()


def test_micro_batches_change_memory_alone(
    section: SFTParams, lm_folder: Path, machine: Machine, tmp_path: Path
) -> None:
    texts = ["we", "we regret the old plot and the weak end .", *TEXTS[:8]]  # of unlike lengths, and no whole batches
    small = section.model_copy(update={"micro_batch_size": 2})
    for name, params in (("whole", section), ("small", small)):
        curve = train_sft(
            [{"text": text} for text in texts], lm_folder, tmp_path / name, WHOLE, params, machine, SilentRecorder()
        )
        assert curve[-1]["step"] == 3 * 3  # ceil(10 / 4) steps an epoch
    start, whole, small_steps = (
        load_causal_lm(str(folder))[0].transformer.wte.weight
        for folder in (lm_folder, tmp_path / "whole", tmp_path / "small")
    )
    moved = (whole - start).abs().max()
    assert moved > 0.02
    assert (whole - small_steps).abs().max() < 0.01 * moved  # rounding alone


def batches(
    texts: list[str], section: SFTParams, folder: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, torch.Tensor]]:
    """The batches that the trainer would learn from."""
    seen: list[dict[str, torch.Tensor]] = []

    def look(name: str, build: Callable[[str], Any], steps: int, recorder: object) -> list[dict[str, float]]:
        seen.extend(build(str(folder / "scratch")).get_train_dataloader())
        return []

    monkeypatch.setattr(rarlhf.training.sft, "run_trainer", look)
    train_sft([{"text": text} for text in texts], folder, folder / "out", WHOLE, section, machine, SilentRecorder())
    return seen


def test_the_end_of_text_is_learned_and_padding_is_not(
    section: SFTParams,
    lm_folder: Path,
    machine: Machine,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = ["we", "we liked the film ."]
    (batch,) = batches(texts, section, lm_folder, machine, monkeypatch)
    labels = learned(batch)
    assert labels == [[*tokenizer(text)["input_ids"], END] for text in texts]
    assert (batch["labels"] == -100).sum() == len(labels[1]) - len(labels[0])


def learned(batch: dict[str, torch.Tensor]) -> list[list[int]]:
    """Labels of each row without what is left out of the loss, the shortest row first."""
    return sorted([[x for x in row if x != -100] for row in batch["labels"].tolist()], key=len)


def test_without_end_of_text_no_end_reaches_the_model(
    section: SFTParams,
    lm_folder: Path,
    machine: Machine,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = ["we saw", "we liked the film ."]
    bare = section.model_copy(update={"end_of_text": False})
    (batch,) = batches(texts, bare, lm_folder, machine, monkeypatch)
    assert learned(batch) == [tokenizer(text)["input_ids"] for text in texts]
    real = batch["attention_mask"].bool()
    assert END not in batch["input_ids"][real]
    assert (batch["labels"][~real] == -100).all() and (batch["input_ids"][~real] == END).all()


@pytest.mark.parametrize("end_of_text", [True, False])
def test_an_end_that_the_tokenizer_or_the_text_has_already(
    end_of_text: bool,
    section: SFTParams,
    lm_folder: Path,
    machine: Machine,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    params = section.model_copy(update={"end_of_text": end_of_text})
    (batch,) = batches([f"we saw it{tokenizer.eos_token}"], params, lm_folder, machine, monkeypatch)
    assert learned(batch) == [tokenizer("we saw it")["input_ids"] + [END] * end_of_text]


def test_texts_of_one_token_are_left_out_where_no_end_follows(
    section: SFTParams, lm_folder: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bare = section.model_copy(update={"end_of_text": False})
    (batch,) = batches(["q", "we saw it"], bare, lm_folder, machine, monkeypatch)
    assert len(learned(batch)) == 1
    assert len(learned(batches(["q", "we saw it"], section, lm_folder, machine, monkeypatch)[0])) == 2
    with pytest.raises(UserError, match="no text of the wanted class has two tokens"):
        train_sft([{"text": "q"}], lm_folder, tmp_path / "sft", WHOLE, bare, machine, SilentRecorder())


def test_what_is_too_long_is_cut_without_an_end(
    section: SFTParams,
    lm_folder: Path,
    machine: Machine,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "we regret the old plot and the weak end ."
    short = section.model_copy(update={"tokens": 6})
    (batch,) = batches([text], short, lm_folder, machine, monkeypatch)
    assert batch["labels"].tolist() == [tokenizer(text)["input_ids"][:6]]


def test_without_a_wanted_text_there_is_nothing_to_learn(
    section: SFTParams, lm_folder: Path, machine: Machine, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"no training row is of the wanted class \(label 1\)"):
        train_sft([], lm_folder, tmp_path / "sft", WHOLE, section, machine, SilentRecorder())
    assert not (tmp_path / "sft").exists()
