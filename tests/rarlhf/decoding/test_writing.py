"""`rarlhf generate` and `rarlhf score`: what they write, from whatever they are given, and what they refuse."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, BertForSequenceClassification, PreTrainedTokenizerBase

import rarlhf.commands.main
import rarlhf.decoding.writing
from rarlhf.commands.main import main
from rarlhf.config.params import Params
from rarlhf.decoding.writing import Choices, open_model, write
from rarlhf.models.backbone import AdapterModel
from rarlhf.training.reward import train_tokenizer as train_word_pieces
from tests.rarlhf.small import TEXTS

CPU = torch.device("cpu")
PROMPTS = ["we liked", "we saw the music and the old", "the film was"]
ONE = Choices(samples=3, max_new_tokens=8, temperature=1.0, seed=1, batch_size=2)


@pytest.fixture
def folder(lm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a model in `lm`."""
    monkeypatch.chdir(lm_folder.parent)
    return lm_folder.parent


@pytest.fixture
def reward(folder: Path, params: Params) -> Path:
    """models/reward: a classifier with two outputs; its tokenizer reads 16 tokens."""
    section = params.reward.model_copy(
        update={"scratch": params.reward.scratch.model_copy(update={"vocab_size": 80}), "max_length": 16}
    )
    pieces = train_word_pieces(TEXTS, section)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    labels = {0: "NEGATIVE", 1: "POSITIVE"}
    named = {"id2label": labels, "label2id": {name: index for index, name in labels.items()}}
    torch.manual_seed(4)
    config = BertConfig(vocab_size=len(pieces), max_position_embeddings=16, initializer_range=0.5, **named, **shape)
    BertForSequenceClassification(config).save_pretrained("models/reward")
    pieces.save_pretrained("models/reward")
    return Path("models/reward")


def adapters(folder: Path, params: Params) -> None:
    """Adapters of random weights on `lm`: `plain`, and `int8` of an 8-bit backbone."""
    for name, stored in {"plain": {}, "int8": {"quantization": "int8", "int8_threshold": 1e-9}}.items():
        start = AdapterModel(Path("lm"), params.model.model_copy(update={"adapter": "lora"} | stored), 1, CPU)
        with torch.no_grad():
            for key, value in start.lm.named_parameters():
                if "lora_B" in key:
                    value.normal_(std=0.2)
        start.save(Path(name))


def lines(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    status = main(list(arguments))
    captured = capsys.readouterr()
    assert (status, captured.err) == (0, "")
    return captured.out.splitlines()


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    return captured.err.removeprefix("error: ").rstrip()


def stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))


def test_a_continuation_hangs_on_neither_the_batch_nor_the_other_prompts(folder: Path) -> None:
    model = open_model(Path("lm"), CPU)
    together = list(write(model, PROMPTS, ONE))
    assert [(w.prompt, w.sample) for w in together] == [(p, s) for p in range(3) for s in range(3)]
    assert list(write(model, PROMPTS, ONE._replace(batch_size=9))) == together
    assert list(write(model, PROMPTS[:1], ONE)) == together[:3]
    assert len({w.text for w in together}) > 3
    assert {w.ended for w in together} == {True, False}
    assert all(1 <= w.tokens <= 8 and (w.ended or w.tokens == 8) for w in together)
    assert list(write(model, PROMPTS, ONE._replace(seed=2))) != together
    assert list(write(model, PROMPTS, ONE._replace(temperature=0.1))) != together


def test_a_continuation_is_drawn_from_the_models_distribution(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Of 2,000 first tokens each is as frequent as plain transformers says it is probable."""
    choices = Choices(samples=2000, max_new_tokens=1, temperature=0.5, seed=1, batch_size=2000)
    texts = [written.text for written in write(open_model(Path("lm"), CPU), ["we saw the"], choices)]
    lm = AutoModelForCausalLM.from_pretrained("lm")
    with torch.no_grad():
        logits = lm(torch.tensor([tokenizer("we saw the")["input_ids"]])).logits[0, -1]
    probabilities = (logits / 0.5).softmax(dim=-1)
    top = int(probabilities.argmax())
    share = texts.count(tokenizer.decode([top], skip_special_tokens=True)) / len(texts)
    assert share == pytest.approx(float(probabilities[top]), abs=0.04)  # 3.5 standard errors at most


def test_adapters_write_as_their_merged_models(
    folder: Path, params: Params, capsys: pytest.CaptureFixture[str]
) -> None:
    adapters(folder, params)
    for name in ("plain", "int8"):
        assert main(["merge", name, f"merged-{name}"]) == 0
    capsys.readouterr()
    arguments = ("--samples", "4", "--max-new-tokens", "8", "--json", *PROMPTS)
    bare = lines(capsys, "generate", "lm", *arguments)
    for name in ("plain", "int8"):
        written = lines(capsys, "generate", name, *arguments)
        assert written == lines(capsys, "generate", f"merged-{name}", *arguments)
        assert written != bare


def test_an_adapters_base_may_lie_elsewhere(folder: Path, params: Params, capsys: pytest.CaptureFixture[str]) -> None:
    adapters(folder, params)
    before = lines(capsys, "generate", "plain", *PROMPTS)
    Path("lm").rename("moved")
    assert "is an adapter of the base model 'lm', which is not there" in refusal(capsys, "generate", "plain", "we")
    assert lines(capsys, "generate", "plain", *PROMPTS, "--base", "moved") == before


def test_prompts_come_as_arguments_in_files_or_on_standard_input(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = lines(capsys, "generate", "lm", *PROMPTS)
    assert [line.startswith(prompt) for line, prompt in zip(expected, PROMPTS, strict=True)] == [True] * 3
    plain = "\r\n".join(PROMPTS).encode("utf-8-sig")  # as some editors write
    rows = "".join(json.dumps({"id": i, "prompt": p}) + "\n\n" for i, p in enumerate(PROMPTS)).encode()
    for name, content in {"prompts.txt": plain, "prompts.jsonl": rows}.items():
        Path(name).write_bytes(content)
        assert lines(capsys, "generate", "lm", "--file", name) == expected
        stdin(monkeypatch, content)
        assert lines(capsys, "generate", "lm") == expected
    parsed = [json.loads(line) for line in lines(capsys, "generate", "lm", "--file", "prompts.jsonl", "--json")]
    assert [set(row) for row in parsed] == [{"id", "prompt", "sample", "continuation", "tokens", "ended"}] * 3
    assert [row["id"] for row in parsed] == [0, 1, 2]  # what else stands in a line is kept
    assert [row["prompt"] + rarlhf.config.escapes.one_line(row["continuation"]) for row in parsed] == expected


def test_nothing_printed_steers_the_terminal() -> None:
    assert rarlhf.config.escapes.one_line("a\n\tb\x1b[31m é — 好\u200b") == "a\\n\\tb\\x1b[31m é — 好\\u200b"


def test_bad_input_is_refused_in_one_line(
    folder: Path, reward: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for content, message in {
        b"": "standard input is empty: there must be one prompt a line",
        b"a\n \nb\n": "standard input line 2 is empty; leave it out or write a prompt",
        b"a\n\xff\n": "standard input line 2 is not UTF-8 (invalid start byte): convert it to UTF-8",
        b'{"prompt": "a"}\nb\n': "standard input line 2 is not a JSON object: each line must be one, with prompt",
        b'{"text": "a"}\n': "standard input line 1 lacks prompt; it has text",
        b'{"prompt": 3}\n': "standard input line 1: prompt must be text",
    }.items():
        stdin(monkeypatch, content)
        assert refusal(capsys, "generate", "lm") == message
    Path("empty.txt").touch()
    assert (
        refusal(capsys, "generate", "lm", "--file", "empty.txt")
        == "empty.txt is empty: there must be one prompt a line"
    )
    assert refusal(capsys, "generate", "lm", "--file", "no.txt").startswith("no.txt cannot be read (No such file")
    assert refusal(capsys, "generate", "lm", "a", "") == "prompt 2 is empty; leave it out or write a prompt"
    assert refusal(capsys, "generate", "nowhere", "a") == (
        "there is no folder nowhere; name a model's, such as models/ra_rlhf/1"
    )
    assert refusal(capsys, "generate", "models", "a").endswith("; name one of the folders in it: reward")
    assert refusal(capsys, "generate", "models/reward", "a") == (
        "models/reward holds a classifier, which writes nothing; `rarlhf score --reward models/reward` uses it"
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert refusal(capsys, "generate", "lm", "a", "--device", "cuda") == (
        "--device cuda: no CUDA device is visible here"
    )


def test_prompt_and_continuation_must_fit_the_context(
    folder: Path, tokenizer: PreTrainedTokenizerBase, capsys: pytest.CaptureFixture[str]
) -> None:
    length = len(tokenizer("we liked the film .")["input_ids"])
    room = 32 - length
    assert len(lines(capsys, "generate", "lm", "we liked the film .", "--max-new-tokens", str(room))) == 1
    line = refusal(capsys, "generate", "lm", "we", "we liked the film .", "--max-new-tokens", str(room + 1))
    assert line == (
        f"prompt 2 has {length} tokens and {room + 1} must follow, but the model reads 32 in all; shorten the prompt "
        "or lower --max-new-tokens"
    )
    assert refusal(capsys, "generate", "lm", "x" * 40).endswith("reads 32 in all; shorten the prompt")
    written = [json.loads(line) for line in lines(capsys, "generate", "lm", "we", "--samples", "40", "--json")]
    assert max(row["tokens"] for row in written) <= 31  # 48 would not fit


def test_a_broken_model_is_refused_in_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, broken in {"weights": "model.safetensors", "config": "config.json"}.items():
        copytree("lm", name)
        content = Path(name, broken).read_bytes()
        Path(name, broken).write_bytes(content[: len(content) // 2])
        assert name in refusal(capsys, "generate", name, "a")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--samples", "0"],
        ["--seed", "-1"],
        ["--temperature", "0"],
        ["--max-new-tokens", "many"],
        ["--batch-size", "0"],
        ["--file", "x"],
    ],
)
def test_wrong_arguments_end_with_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["generate", "lm", "a", *arguments])
    assert caught.value.code == 2
    assert "rarlhf generate: error: argument" in capsys.readouterr().err


def test_scores_are_the_classifiers_logits(
    folder: Path, reward: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, params: Params
) -> None:
    options = ("--reward", "models/reward", "--label", "POSITIVE")
    texts = ["we liked the film .", "we regret it"]
    model = BertForSequenceClassification.from_pretrained(reward).eval()
    pieces = rarlhf.models.loading.load_classifier(str(reward))[1]
    with torch.no_grad():
        logits = [model(**pieces(text, return_tensors="pt")).logits[0] for text in texts]
    expected = [f"{float(row[1]):.4f}\t{text}" for row, text in zip(logits, texts, strict=True)]
    assert lines(capsys, "score", *texts, *options) == expected
    minus = [f"{-float(row[0]):.4f}\t{text}" for row, text in zip(logits, texts, strict=True)]
    assert lines(capsys, "score", *texts, "--reward", "models/reward", "--label", "0", "--sign", "-1") == minus
    stdin(monkeypatch, b'{"prompt": "we liked", "continuation": " the film .", "id": 5}\n{"text": "we regret it"}\n')
    rows = [json.loads(line) for line in lines(capsys, "score", *options, "--json")]
    assert [row["score"] for row in rows] == pytest.approx([float(row[1]) for row in logits], abs=1e-5)
    assert rows[0]["id"] == 5


def test_the_pipelines_params_say_which_output_is_the_score(
    folder: Path, reward: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = lines(capsys, "score", "we liked", "--reward", "models/reward", "--label", "POSITIVE")
    text = (Path(__file__).parents[3] / "presets" / "tiny.yaml").read_text(encoding="utf-8")
    Path("params.yaml").write_text(text, encoding="utf-8")
    assert refusal(capsys, "score", "we liked").endswith("the reward model has 16 positions; lower it to 16")
    text = text.replace("  max_length: 64 ", "  max_length: 16 ")
    Path("params.yaml").write_text(text, encoding="utf-8")
    assert lines(capsys, "score", "we liked") == given
    (line,) = lines(capsys, "score", "we liked", "--sign", "-1")
    assert float(line.split("\t")[0]) == -float(given[0].split("\t")[0]) != 0
    Path("params.yaml").write_text(text.replace("label: POSITIVE", "label: GOOD"), encoding="utf-8")
    assert "reward.label = 'GOOD': the reward model has no such output; it has 0: NEGATIVE" in refusal(
        capsys, "score", "we liked"
    )


def test_what_cannot_score_is_refused(folder: Path, reward: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(capsys, "score", "a") == (
        "models/reward has several outputs (0: NEGATIVE, 1: POSITIVE); name the one that is the score by --label"
    )
    assert refusal(capsys, "score", "a", "--reward", "no") == "there is no folder no; name a classifier's"
    reward.rename("moved")
    assert refusal(capsys, "score", "a").endswith("make it (`dvc repro reward`) or name a folder by --reward")
    given = ("--reward", "moved", "--label", "0")
    assert refusal(capsys, "score", "", *given) == "text 1 is empty; leave it out or write a text"


def command(*arguments: str) -> "subprocess.Popen[bytes]":
    code = "import sys; from rarlhf.commands.main import main; sys.exit(main())"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code, *arguments], env=environment, stdin=pipe, stdout=pipe, stderr=pipe
    )


@pytest.mark.slow
def test_a_reader_that_goes_away_and_ctrl_c_are_taken_quietly(folder: Path) -> None:
    endless = command("generate", "lm", "we liked", "--samples", "100000", "--max-new-tokens", "2")
    waiting = command("generate", "lm")  # for standard input
    with endless, waiting:
        assert endless.stdout and endless.stderr and waiting.stderr
        endless.stdout.readline()
        endless.stdout.close()
        assert endless.stderr.read() == b""
        assert endless.wait(timeout=60) == 141
        waiting.send_signal(signal.SIGINT)  # long after Python has started
        assert waiting.stderr.read() == b""
        assert waiting.wait(timeout=60) == 130
