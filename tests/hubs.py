"""A local cache of the hub as the hub's client makes it, holding small stand-ins of the same classes and schemas."""

import hashlib
import json
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2TokenizerFast,
    GPTJConfig,
    GPTJForCausalLM,
)

from rarlhf.config.judging import RewardParams
from rarlhf.training.reward import train_tokenizer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
END = 50256  # of GPT-2's 50,257 tokens the last: 256 bytes, 50,000 merges, and this
TOXICITY = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]


class Cache:
    """A hub cache in a folder, the only one that the client sees while it is offline."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = home / "hub"
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(self.folder))
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def add(self, name: str, files: Path, commit: str = COMMIT, kind: str = "model", ref: str = "main") -> Path:
        """Puts the files of a folder in as blobs, with a snapshot of links to them; returns the snapshot."""
        place = self.folder / f"{kind}s--{name.replace('/', '--')}"
        snapshot = place / "snapshots" / commit
        for file in (path for path in sorted(files.rglob("*")) if path.is_file()):
            content = file.read_bytes()
            blob = place / "blobs" / hashlib.sha256(content).hexdigest()
            blob.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(content)
            link = snapshot / file.relative_to(files)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob)
        (place / "refs" / ref).parent.mkdir(parents=True, exist_ok=True)
        (place / "refs" / ref).write_text(commit)
        return snapshot


def gpt2_tokenizer(end_id: int = END) -> GPT2TokenizerFast:
    """GPT-2's form: byte-level BPE of 50,257 entries, the last of which begins, ends and is unknown; no padding."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(left, right) for left in letters for right in letters][: end_id - len(letters)]
    vocabulary = {token: index for index, token in enumerate([*letters, *(a + b for a, b in merges), "<|endoftext|>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    return GPT2TokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end)


def write_gpt2(folder: Path, tokenizer: GPT2TokenizerFast) -> None:
    """As `gpt2`: weights in float32, named without the head's prefix."""
    torch.manual_seed(1)
    config = GPT2Config(n_embd=8, n_layer=2, n_head=2, n_positions=256, vocab_size=len(tokenizer))
    model = GPT2LMHeadModel(config)
    model.transformer.save_pretrained(folder)
    config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_gptj(folder: Path, tokenizer: GPT2TokenizerFast) -> None:
    """As `EleutherAI/gpt-j-6b`: GPT-2's tokens, and more embeddings than there are tokens."""
    torch.manual_seed(2)
    shape: dict[str, Any] = {"n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4, "n_positions": 256}
    GPTJForCausalLM(GPTJConfig(**shape, vocab_size=len(tokenizer) + 143)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_distilbert(folder: Path, params: RewardParams, texts: list[str]) -> None:
    """As `lvwerra/distilbert-imdb`: two outputs, NEGATIVE and POSITIVE."""
    pieces = train_tokenizer(texts, params)
    labels = {0: "NEGATIVE", 1: "POSITIVE"}
    torch.manual_seed(3)
    config = DistilBertConfig(vocab_size=len(pieces), dim=16, n_layers=1, n_heads=2, hidden_dim=16)
    config.id2label, config.label2id = labels, {name: index for index, name in labels.items()}
    DistilBertForSequenceClassification(config).save_pretrained(folder)
    pieces.save_pretrained(folder)


def write_toxic_bert(folder: Path, params: RewardParams, texts: list[str]) -> None:
    """As `unitary/toxic-bert`: six outputs for labels that do not exclude each other, `toxic` first."""
    pieces = train_tokenizer(texts, params)
    torch.manual_seed(4)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(pieces), problem_type="multi_label_classification", **shape)
    config.id2label = dict(enumerate(TOXICITY))
    config.label2id = {name: index for index, name in config.id2label.items()}
    BertForSequenceClassification(config).save_pretrained(folder)
    pieces.save_pretrained(folder)


def write_imdb(folder: Path, texts: list[str]) -> None:
    """As `stanfordnlp/imdb`: parquet files, a configuration with class names, a split without labels."""
    import pyarrow
    import pyarrow.parquet

    (folder / "plain_text").mkdir(parents=True)
    for split in ("train", "test", "unsupervised"):
        labels = [-1 if split == "unsupervised" else index % 2 for index in range(len(texts))]
        table = {"text": [f"{split} {text}" for text in texts], "label": labels}
        path = folder / "plain_text" / f"{split}-00000-of-00001.parquet"
        pyarrow.parquet.write_table(pyarrow.table(table), path)
    files = "".join(
        f"  - split: {split}\n    path: plain_text/{split}-*\n" for split in ("train", "test", "unsupervised")
    )
    (folder / "README.md").write_text(
        "---\ndataset_info:\n  config_name: plain_text\n  features:\n  - name: text\n    dtype: string\n"
        "  - name: label\n    dtype:\n      class_label:\n        names:\n          '0': neg\n          '1': pos\n"
        f"configs:\n- config_name: plain_text\n  data_files:\n{files}  default: true\n---\n"
    )


def write_real_toxicity_prompts(folder: Path, texts: list[str]) -> None:
    """As `allenai/real-toxicity-prompts`: one file, what is asked for within `prompt`, toxicity null in some rows."""
    folder.mkdir(parents=True)
    rows = []
    for index, text in enumerate(texts):
        toxicity = [0.1, 0.9, 0.3, 0.6, 0.45, 0.05, 0.7][index % 7] if index % 20 else None
        scores = {"profanity": 0.1, "insult": None, "toxicity": toxicity}
        prompt = {"text": text, **scores}
        rows.append({"filename": "x.txt", "begin": 0, "end": 9, "challenging": False, "prompt": prompt,
                     "continuation": {"text": " and so on", **scores}})  # fmt: skip
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")


def write_jigsaw(folder: Path, texts: list[str]) -> None:
    """As the Jigsaw challenge's files from Kaggle: labels of the test comments apart, -1 where they were not scored."""
    import csv

    others = TOXICITY[1:]
    folder.mkdir(parents=True)

    def write(name: str, header: list[str], rows: list[list[Any]]) -> None:
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *rows])

    columns = ["id", "comment_text", "toxic", *others]
    toxic = [int(index % 3 == 0) for index in range(len(texts))]
    write("train.csv", columns, [[f"a{i}", f'"{text}"\nsaid', toxic[i], *[0] * 5] for i, text in enumerate(texts)])
    write("test.csv", columns[:2], [[f"b{i}", f"test {text}"] for i, text in enumerate(texts)])
    labels = [-1 if index % 5 == 0 else toxic[index] for index in range(len(texts))]
    write(
        "test_labels.csv", ["id", "toxic", *others], [[f"b{i}", label, *[label] * 5] for i, label in enumerate(labels)]
    )
