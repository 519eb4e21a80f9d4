"""Scorers: given ones, or DistilBERT-shaped classifiers that are trained from scratch on the rows."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    DataCollatorWithPadding,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from rarlhf.config.function_names import is_function
from rarlhf.config.judging import ScorerParams
from rarlhf.data.classes import area_under_curve
from rarlhf.data.rows import Row
from rarlhf.data.world import KINDS, best_accuracy, latent_sentiment
from rarlhf.messages.progress import Recorder
from rarlhf.models.given import given_classifier
from rarlhf.models.loading import save_model
from rarlhf.rewards.functions import code_fingerprint, load_function
from rarlhf.rewards.scorers import Score, about, folder_of, of_other, output_index, output_values
from rarlhf.system.files import write_json
from rarlhf.system.machine import Machine
from rarlhf.system.streams import seed_globals
from rarlhf.training.supervised import LossCurve, fit, steps_in, training_options

ALPHABET = 1000  # most letters that a tokenizer knows; the rarest beyond it become unknown
TOP = 0.3  # share of the texts, those of highest latent sentiment, by which the slope of a score is measured
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def make_scorer(
    rows: Sequence[Row], folder: Path, params: ScorerParams, machine: Machine, recorder: Recorder
) -> LossCurve:
    """Writes a scorer to `folder`; returns its training curve, empty for one that is given.

    If it is more than one classifier, scorer.json lists its parts.

    Args:
        rows: what it is trained on where its source is scratch.
        folder: where the classifier and its tokenizer are written, and those of `reward.others` below it.
        params: section `reward`, or `judge.second_scorer`.
        machine: device and precision.
        recorder: takes the loss.
    Raises: UserError if a given scorer is not there, or not as the params say.
    """
    if params.source == "scratch":
        curve = _train_classifier(rows, folder, params, machine, recorder)
    else:
        curve = _take_scorer(folder, params)
    for number, other in enumerate(params.further, start=1):
        with about(other):
            _take_scorer(folder_of(folder, number), of_other(params, other))
    if not is_one_classifier(params):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "scorer.json", described_scorers(params))
    return curve


def _take_scorer(folder: Path, params: ScorerParams) -> LossCurve:
    if is_function(params.source):
        load_function(params.source)
        return []
    given = given_classifier(params)
    output_index(given.model, params)
    output_values(given.model, params)
    given.write(folder)
    return []


def described_scorers(params: ScorerParams) -> list[dict[str, Any]]:
    """The parts of a score: source and weight of each scorer, and a fingerprint of each function's code."""
    parts = [(params.source, float(params.sign)), *((other.source, other.weight) for other in params.further)]
    return [
        {"source": source, "weight": weight} | (code_fingerprint(source) if is_function(source) else {})
        for source, weight in parts
    ]


def _train_classifier(
    rows: Sequence[Row], folder: Path, params: ScorerParams, machine: Machine, recorder: Recorder
) -> LossCurve:
    tokenizer = train_tokenizer([row.text for row in rows], params)
    model = new_classifier(tokenizer, params).to(machine.device)
    p = params.scratch
    examples = LabelledTexts(rows, tokenizer, params)
    steps = steps_in(len(examples), p.batch_size, p.epochs)
    options = training_options(machine, p.epochs, p.batch_size, p.lr, "linear", p.seed, steps)
    options |= {
        "train_sampling_strategy": "group_by_length",
        "length_column_name": "length",
        "weight_decay": p.weight_decay,
    }
    recorder.say(f"{model.num_parameters():,} parameters, {len(examples):,} texts, {steps:,} steps")
    curve = fit(params.title, model, examples, Padded(tokenizer), options, steps, recorder)
    save_model(model, tokenizer, folder)
    return curve


def train_tokenizer(texts: Sequence[str], params: ScorerParams) -> PreTrainedTokenizerBase:
    """An uncased WordPiece tokenizer of `texts`, of BERT's form; equal texts give equal bytes."""
    vocab = _trained_vocab(texts, params.scratch.vocab_size)
    tokenizer = _bare_tokenizer(vocab)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.decoder = decoders.WordPiece()
    ends = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=params.max_length,
        clean_up_tokenization_spaces=False,
    )


def _bare_tokenizer(vocab: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def _trained_vocab(texts: Sequence[str], size: int) -> dict[str, int]:
    """Word pieces and their numbers.

    The trainer numbers the letters within words in the order of a hash table, which differs between processes, and
    breaks ties between pieces by these numbers. Letters listed beforehand are numbered in the order of the list.
    """
    tokenizer = _bare_tokenizer({})
    letters: Counter[str] = Counter()
    for text in texts:
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text)):
            letters.update(word[1:])
    usual = sorted(letters, key=lambda letter: (-letters[letter], letter))[:ALPHABET]
    first = [*SPECIAL_TOKENS, *(f"##{letter}" for letter in sorted(usual))]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=first, limit_alphabet=ALPHABET, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.get_vocab()


def new_classifier(tokenizer: PreTrainedTokenizerBase, params: ScorerParams) -> DistilBertForSequenceClassification:
    """A DistilBERT-shaped classifier with one output, whose raw logit is the log-odds of its label."""
    seed_globals(params.section, params.scratch.seed)
    config = DistilBertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=params.max_length,
        dim=params.scratch.width,
        n_layers=params.scratch.layers,
        n_heads=params.scratch.heads,
        hidden_dim=4 * params.scratch.width,
        initializer_range=params.scratch.init_std,
        dropout=params.scratch.dropout,
        attention_dropout=params.scratch.dropout,
        seq_classif_dropout=params.scratch.dropout,
        pad_token_id=tokenizer.pad_token_id,
        num_labels=1,
        id2label={0: str(params.label)},
        label2id={str(params.label): 0},
        problem_type="multi_label_classification",
    )
    return DistilBertForSequenceClassification(config)


class LabelledTexts(Dataset[dict[str, Any]]):
    """Tokenised texts with the target of the one output: 1 for the wanted class; with sign -1, for the other.

    Where the source knows the chance of the label, as raters' shares would give it, that is the target. Single labels
    say next to nothing about how much better than good a text is, so that a classifier of them saturates there.
    """

    def __init__(self, rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, params: ScorerParams) -> None:
        texts = cut_some([row.text for row in rows], params.scratch.cut_share, params.scratch.seed)
        encoded = tokenizer(texts, truncation=True, max_length=params.max_length)
        self.input_ids = encoded["input_ids"]
        wanted = [float(row.label == 1) if row.chance is None else row.chance for row in rows]
        self.targets = wanted if params.sign == 1 else [1.0 - target for target in wanted]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = self.input_ids[index]
        return {"input_ids": ids, "labels": [self.targets[index]], "length": len(ids)}


def cut_some(texts: Sequence[str], share: float, seed: int) -> list[str]:
    """`texts`, about `share` of them cut after a random word, so that the classifier knows bare prompts too.

    A cut text keeps its label, so that the classifier learns what to expect after such a beginning.
    """
    draws = Random(f"cut/{seed}")

    def cut(text: str) -> str:
        ends = [match.end() for match in re.finditer(r"\S+", text)]
        return text[: draws.choice(ends)] if ends and draws.random() < share else text

    return [cut(text) for text in texts]


class Padded:
    """Collates examples without their length, which only the sampler reads."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.pad = DataCollatorWithPadding(tokenizer)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> Mapping[str, Tensor]:
        """Pads a batch to its longest text."""
        return self.pad([{key: x[key] for key in ("input_ids", "labels")} for x in examples])


def is_one_classifier(params: ScorerParams) -> bool:
    """Whether the score is the output of a single classifier."""
    return not (params.functions or params.further)


def score_quality(score: Score, rows: Sequence[Row], params: ScorerParams) -> dict[str, float]:
    """How well a score separates the classes of `rows` (label 1 is the wanted one), and how it is spread.

    Returns: of one classifier `accuracy` at logit 0 or probability one half, where there are labels; `auc`, the area
        under the ROC curve, where there are labels; else and of other scores `score_mean` and `score_std`; and `rows`.
    """
    scores = score([row.text for row in rows])
    quality: dict[str, float] = {}
    one, labelled = is_one_classifier(params), all(row.label is not None for row in rows)
    if labelled:
        wanted = torch.tensor([row.label == 1 for row in rows])
        threshold = 0.0 if params.output == "logit" else 0.5 * params.sign
        accuracy = ((scores > threshold) == wanted).double().mean()
        quality |= {"accuracy": float(accuracy)} if one else {}
        quality["auc"] = area_under_curve(scores, wanted)
    if not (one and labelled):
        quality |= {"score_mean": float(scores.mean()), "score_std": float(scores.std(correction=0))}
    return quality | {"rows": len(rows)}


def world_quality(reward_model: Score, rows: Sequence[Row]) -> dict[str, float]:
    """How close a classifier comes to the oracle of the generated world.

    Returns: `best_accuracy` that the oracle reaches on `rows`; for each kind of prompt `rank_KIND`, Spearman's
        correlation of score and latent sentiment, and `top_slope_KIND`, score per latent sentiment among the `TOP` best
        texts: 1 where the score pays for the best texts as the world does, 0 where it saturates.
    """
    from scipy.stats import spearmanr

    scores = reward_model([row.text for row in rows]).double()
    quality = {"best_accuracy": best_accuracy(rows)}  # which refuses texts of another world
    latent = torch.tensor([latent_sentiment(row.text) for row in rows], dtype=torch.float64)
    for kind in KINDS:
        of_kind = torch.tensor([f" {kind} " in row.text for row in rows])
        quality[f"rank_{kind}"] = float(spearmanr(scores[of_kind], latent[of_kind]).statistic)
        quality[f"top_slope_{kind}"] = _top_slope(scores[of_kind], latent[of_kind])
    return quality


def _top_slope(scores: Tensor, latent: Tensor) -> float:
    """Least squares slope of scores on latent sentiment (both (N,)) among texts at or above its 1 - `TOP` quantile."""
    best = latent >= latent.quantile(1 - TOP)
    offsets = latent[best] - latent[best].mean()
    return float(offsets @ scores[best] / (offsets @ offsets))
