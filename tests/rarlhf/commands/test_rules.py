"""`rarlhf generate --rule`: what each rule writes, and what is refused before anything slow."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, GPT2LMHeadModel, PreTrainedTokenizerBase

from rarlhf.config.params import Params
from rarlhf.models.loading import load_causal_lm, save_model
from rarlhf.training.reward import train_tokenizer as train_word_pieces
from tests.rarlhf.commands.test_main import ROOT, in_a_process
from tests.rarlhf.commands.test_main import refusal as refused
from tests.rarlhf.conftest import TEXTS
from tests.rarlhf.decoding.test_writing import lines

PROMPTS = ["we liked", "we saw the music and the old", "the film was"]
LENGTH = ("--max-new-tokens", "6", "--seed", "3")
Refuse = Callable[[str], str]


@pytest.fixture
def folder(
    lm_folder: Path, tokenizer: PreTrainedTokenizerBase, params: Params, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The current folder: models `lm`, `up` and `down`, a classifier, and the parameters of preset tiny."""
    monkeypatch.chdir(lm_folder.parent)
    for name, factor in {"up": 1.6, "down": 0.5}.items():
        model = load_causal_lm("lm")[0]
        with torch.no_grad():
            model.transformer.h[0].attn.c_proj.weight.mul_(factor)
        save_model(model, tokenizer, Path(name))
    scratch = params.reward.scratch.model_copy(update={"vocab_size": 80})
    pieces = train_word_pieces(TEXTS, params.reward.model_copy(update={"scratch": scratch, "max_length": 64}))
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    labels = {0: "NEGATIVE", 1: "POSITIVE"}
    named = {"id2label": labels, "label2id": {name: index for index, name in labels.items()}}
    torch.manual_seed(4)
    config = BertConfig(vocab_size=len(pieces), max_position_embeddings=64, initializer_range=0.5, **named, **shape)
    BertForSequenceClassification(config).save_pretrained("models/reward")
    pieces.save_pretrained("models/reward")
    shutil.copyfile(ROOT / "presets" / "tiny.yaml", "params.yaml")
    return lm_folder.parent


def scores(capsys: pytest.CaptureFixture[str], texts: list[str]) -> list[float]:
    rows = [json.dumps({"text": text}) for text in texts]
    Path("texts.jsonl").write_text("".join(row + "\n" for row in rows), encoding="utf-8")
    return [json.loads(line)["score"] for line in lines(capsys, "score", "--file", "texts.jsonl", "--json")]


def written(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    rows = [json.loads(line) for line in lines(capsys, "generate", "lm", *PROMPTS, *LENGTH, "--json", *arguments)]
    return [row["prompt"] + row["continuation"] for row in rows]


def test_draws_are_chosen_by_the_pipelines_scorer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = written(capsys)
    assert written(capsys, "--rule", "best_of_n", "--set", "n=1") == plain
    best = written(capsys, "--rule", "best_of_n", "--set", "n=6")
    before, after = scores(capsys, plain), scores(capsys, best)
    assert all(new >= old for new, old in zip(after, before, strict=True))
    assert sum(after) > sum(before)
    assert written(capsys, "--rule", "best_of_n", "--set", "n=6", "--label", "NEGATIVE") != best
    given = ("--scorer", "models/reward", "--label", "POSITIVE")
    assert written(capsys, "--rule", "best_of_n", "--set", "n=6", *given) == best
    anything = ("--rule", "rejection", "--set", "n=6", "--set")
    assert written(capsys, *anything, "threshold=-1e9") == plain
    assert written(capsys, *anything, "threshold=1e9") == best
    soft = ("--rule", "soft_rejection", "--set", "n=6", "--set", "kl_coef=1", "--set")
    assert written(capsys, *soft, "eta=-1e9") == plain
    assert written(capsys, *soft, "eta=1e9") == best


def test_the_section_of_params_yaml_has_the_settings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    four = written(capsys, "--rule", "best_of_n")
    assert written(capsys, "--rule", "best_of_n", "--set", "n=4") == four  # as in preset tiny
    Path("params.yaml").unlink()
    label = ("--label", "POSITIVE", "--scorer", "models/reward")
    assert written(capsys, "--rule", "best_of_n", "--set", "n=4", *label) == four


def test_rules_that_change_the_distribution_write_by_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, experts = written(capsys), ("--expert", "up", "--anti-expert", "down")
    assert written(capsys, "--rule", "dexperts", *experts, "--set", "alpha=0", "--set", "top_p=1") == plain
    gedi = written(capsys, "--rule", "gedi", *experts)
    steered = written(capsys, "--rule", "dexperts", *experts)
    told = written(capsys, "--rule", "prompted", "--set", "instruction= the film ")
    assert told != written(capsys, "--rule", "prompted", "--set", "instruction=the film")  # spaces are text too
    debiased = written(capsys, "--rule", "self_debias", "--set", "attributes=[film, plot]", "--set", "decay=500")
    assert len({tuple(texts) for texts in (plain, gedi, steered, told, debiased)}) == 5


REFUSED = {
    "--set n=4": "--set: of use to a decoding rule alone; name one by --rule",
    "--expert up --label 1": "--expert and --label: of use to a decoding rule alone; name one by --rule",
    "--rule best": "--rule best: there is no such rule; take one of prompted, best_of_n, rejection, soft_rejection,",
    "--rule best_of_n --set n": "--set n: write KEY=VALUE, such as n=8",
    "--rule best_of_n --set n=0": "--set n = 0: should be greater than or equal to 1",
    "--rule best_of_n --set m=4": "--set m: unknown key",
    "--rule best_of_n --set n=[": "--set n is not readable as YAML",
    "--rule dexperts --expert up --anti-expert down --set alpha=-1": "--set alpha = -1: should be greater",
    "--rule dexperts --expert up --anti-expert down --set top_p=high": "--set top_p = 'high': should be a valid number",
    "--rule rejection": "--rule rejection: stage plan finds threshold for the pipeline; here, give --set threshold=...",
    "--rule soft_rejection --set eta=1": "--rule soft_rejection: stage plan finds kl_coef for the pipeline; here, give",
    "--rule soft_rejection": "--rule soft_rejection: stage plan finds eta and kl_coef for the pipeline; here",
    "--rule dexperts --expert up": "--rule dexperts reads two further models: name them by --expert and --anti-expert",
    "--rule gedi --expert up --anti-expert no": "there is no folder no; name a model's, such as models/ra_rlhf/1",
    "--rule gedi --expert up --anti-expert models/reward": "models/reward holds a classifier, which writes nothing",
    "--rule prompted --expert up": "--expert: rule prompted reads no such thing; leave it out",
    "--rule self_debias --scorer models/reward": "--scorer: rule self_debias reads no such thing; leave it out",
    "--rule best_of_n --scorer no": "there is no folder no; name a classifier's",
    "--rule best_of_n --scorer models/reward": "models/reward has several outputs (0: NEGATIVE, 1: POSITIVE); name",
}


def test_what_files_and_words_show_is_refused_before_slow_imports(folder: Path) -> None:
    (printed,), errors = in_a_process(*(f"generate lm we {arguments}" for arguments in REFUSED))
    assert json.loads(printed) == [[1] * len(REFUSED), []]
    for line, message in zip(errors.splitlines(), REFUSED.values(), strict=True):
        assert line.startswith(f"error: {message}")


def test_what_is_not_there_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.move("models/reward", "moved")
    assert refused(capsys, "generate lm we --rule best_of_n").endswith("or name a folder by --scorer")
    Path("params.yaml").unlink()
    assert refused(capsys, "generate lm we --rule dexperts --set alpha=2 --expert up --anti-expert down") == (
        "--rule dexperts: there is no params.yaml here, so give top_p by --set top_p=..."
    )


def test_models_of_other_vocabularies_are_refused(
    folder: Path, lm: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, capsys: pytest.CaptureFixture[str]
) -> None:
    size = lm.config.vocab_size
    lm.resize_token_embeddings(size + 8)
    save_model(lm, tokenizer, Path("wide"))
    capsys.readouterr()
    assert refused(capsys, "generate lm we --rule dexperts --expert up --anti-expert wide") == (
        f"the model, the expert and the anti-expert have logits for {size}, {size}, {size + 8} tokens; take models of "
        "one vocabulary"
    )
