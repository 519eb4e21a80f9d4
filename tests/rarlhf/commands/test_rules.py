"""`rarlhf generate --rule`: what each rule writes, and what is refused before anything slow."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerBase,
)

from rarlhf.commands.rules import ChosenRule, open_rule
from rarlhf.config.baselines import NADOParams
from rarlhf.config.params import Params
from rarlhf.decoding.prompts import left_pad
from rarlhf.decoding.writing import open_model
from rarlhf.models.head import new_head
from rarlhf.models.loading import load_causal_lm, save_model
from rarlhf.models.way import Way, write_way
from rarlhf.system.machine import Machine
from rarlhf.training.reward import train_tokenizer as train_word_pieces
from tests.rarlhf.commands.test_main import ROOT, in_a_process
from tests.rarlhf.commands.test_main import refusal as refused
from tests.rarlhf.decoding.test_writing import lines
from tests.rarlhf.small import TEXTS

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


@pytest.fixture
def heads(folder: Path, lm: GPT2LMHeadModel, params: Params) -> None:
    """Heads `good/1` on `lm`, `other/1` on another vocabulary, `narrow/1` on another width."""
    for name, shape in {"good": {}, "other": {"vocab_size": 9}, "narrow": {"n_embd": 8}}.items():
        below = lm if not shape else GPT2LMHeadModel(GPT2Config(**lm.config.to_dict() | shape))
        head = new_head(below, params.head.model_copy(update={"init_std": 0.9}), 24, seed=1)
        with torch.no_grad():
            head.lm_head.weight.mul_(40.0)
        head.save_pretrained(Path(name, "1"))


def test_a_head_steers_the_model_that_it_stands_on_and_others(
    folder: Path, heads: None, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, head = written(capsys), ("--head", "good/1")
    nado = ("--rule", "nado", *head, "--set")
    assert written(capsys, *nado, "factor=0") == plain
    steered = written(capsys, *nado, "factor=2")
    assert steered != plain
    assert written(capsys, *nado, "factor=2", "--sft", "lm") == steered
    assert written(capsys, *nado, "factor=2", "--sft", "up") != steered
    capped = written(capsys, "--rule", "rect", *head)  # eps as in preset tiny
    assert capped not in (plain, steered)
    assert written(capsys, "--rule", "rect", *head, "--set", "eps=0") == capped


def test_a_factor_is_the_power_of_the_head_at_every_temperature(folder: Path, heads: None) -> None:
    """What is drawn at a low temperature: the logits are divided by it after the rule."""
    model, machine = open_model(Path("lm"), torch.device("cpu")), Machine(torch.device("cpu"), torch.float32)
    chosen = ChosenRule("nado", NADOParams(factor=3.0), head=Path("good/1"))
    prompts, logits = left_pad([[5, 6]], 0, model.lm.device), torch.zeros(1, model.lm.config.vocab_size)
    added = [
        open_rule(chosen, model, machine, temperature).processors(prompts, 4)(prompts.tokens, logits) / temperature
        for temperature in (1.0, 0.25)
    ]
    assert torch.allclose(*added)
    assert added[0].std() > 0.1


def test_a_head_that_does_not_fit_is_refused(
    folder: Path, heads: None, lm: GPT2LMHeadModel, capsys: pytest.CaptureFixture[str]
) -> None:
    size = lm.config.vocab_size
    for name, states, tokens in (("other", 16, 9), ("narrow", 8, size)):
        assert refused(capsys, f"generate lm we --rule nado --head {name}/1 --max-new-tokens 4") == (
            f"the head in {name}/1 is of a model with {states} states and {tokens} tokens and the SFT model has 16 "
            f"states and {size} tokens; train it again"
        )
    assert refused(capsys, "generate lm we --rule nado --head good/1 --max-new-tokens 24") == (
        "the head knows texts of 24 tokens, and 1 of the prompt with 24 new ones are more: take fewer, or shorten the "
        "prompt"
    )


def test_quark_s_model_is_refused_where_a_rule_would_read_it_without_its_token(
    folder: Path, heads: None, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree("lm", "quark")
    write_way(Way([5], [5, 6]), load_causal_lm("quark")[0], Path("quark"))
    for rule in ("self_debias", "nado --head good/1", "dexperts --expert up --anti-expert down"):
        line = refused(capsys, f"generate quark we --rule {rule}")
        assert line == f"--rule {rule.split()[0]}: it would read this model, which is Quark's, without its token"
    for rule in ("nado --head good/1 --sft quark", "dexperts --expert up --anti-expert quark"):
        line = refused(capsys, f"generate lm we --rule {rule}")
        assert line == "quark is a model of Quark's, which a rule would read without its token; name another"
    assert lines(capsys, "generate", "quark", "we", "--rule", "best_of_n", "--max-new-tokens", "4")


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
    "--rule nado": "--rule nado reads a head: name it by --head",
    "--rule nado --head no": "there is no folder no; name a head's, such as models/good/1",
    "--rule rect --head up": "up holds a model, and a head is needed: name a folder that stage head wrote",
    "--rule rect --head models/reward": "models/reward holds a model, and a head is needed",
    "--rule nado --head models": "models holds no model: it has no config.json; name one of the folders in it: reward",
    "--rule rect --head up --set eps=1": "--set eps = 1: should be less than 1",
    "--rule gedi --head up --sft lm": "--head and --sft: rule gedi reads no such thing; leave it out",
    "--rule nado --expert up": "--expert: rule nado reads no such thing; leave it out",
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
