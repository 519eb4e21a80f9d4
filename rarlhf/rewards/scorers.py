"""The reward model: any sequence classifier with its tokenizer, a Python function, or a weighted sum of several."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rarlhf.config.errors import UserError
from rarlhf.config.function_names import is_function
from rarlhf.config.judging import OtherScorerParams, RewardParams, ScorerParams
from rarlhf.models.context import positions_of
from rarlhf.rewards.functions import PythonScorer, code_fingerprint
from rarlhf.system.files import files_hash
from rarlhf.system.machine import Machine

Score = Callable[[Sequence[str]], Tensor]  # B texts to (B,) scores, higher is better; a reward model is one


class RewardModel:
    """Scores texts by one output of a classifier, its raw logit or its probability; higher is better."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, params: ScorerParams, machine: Machine
    ) -> None:
        self.model = model.eval().to(machine.device)
        self.tokenizer = tokenizer
        self.params = params
        self.machine = machine
        self.output = output_index(model, params)
        self.value = output_values(model, params)
        _refuse_too_long(model, params)
        _keep_outputs_exact(model)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Scores texts, batched by length.

        Args:
            texts: B texts, cut after `max_length` tokens.
        Returns: (B,) float32 on the CPU: sign * logit, or sign * probability.
        Raises: UserError if a score is not finite.
        """
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        scores = torch.empty(len(texts))
        for start in range(0, len(order), self.params.batch_size):
            rows = order[start : start + self.params.batch_size]
            scores[rows] = self._outputs([texts[i] for i in rows])
        return self.params.sign * _finite(scores, texts, f"the {self.params.title}", self.params.section)

    def _outputs(self, texts: list[str]) -> Tensor:
        encoded = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.params.max_length, return_tensors="pt"
        ).to(self.machine.device)
        with self.machine.autocast():
            logits = self.model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits
        raw = logits.float()[:, self.output]
        return torch.where(raw.isfinite(), self.value(logits.float())[:, self.output], raw).cpu()


def _refuse_too_long(model: PreTrainedModel, params: ScorerParams) -> None:
    """Refuses a `max_length` above the classifier's positions; some models count them from after the padding index."""
    positions = positions_of(model.config)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            positions = module.num_embeddings - module.padding_idx - 1
    if positions is not None and params.max_length > positions:
        raise UserError(
            f"{params.section}.max_length = {params.max_length}: the {params.title} has {positions} positions; "
            f"lower it to {positions}"
        )


def _keep_outputs_exact(model: PreTrainedModel) -> None:
    """Makes a classifier's output layer compute in float32 even in a pass of reduced precision.

    A bfloat16 logit near 5 has steps of 0.03, so that different scores would become equal.
    """
    layers = (module for module in model.modules() if isinstance(module, nn.Linear))
    heads = [layer for layer in layers if layer.out_features == model.config.num_labels]
    if not heads:
        return
    forward = heads[-1].forward

    def exact(input: Tensor) -> Tensor:  # as the layer calls it
        with torch.autocast(input.device.type, enabled=False):
            return forward(input.float())

    heads[-1].forward = exact  # type: ignore[method-assign]


def _finite(scores: Tensor, texts: Sequence[str], scorer: str, section: str) -> Tensor:
    """The scores of `texts`.

    Raises: UserError naming the first text whose score is infinite or not a number.
    """
    bad = (~scores.isfinite()).nonzero().flatten().tolist()
    if bad:
        raise UserError(f"{scorer} gave {scores[bad[0]]} for the text {texts[bad[0]][:60]!r}; check {section}.source")
    return scores


class FunctionScore:
    """Scores texts by a Python function."""

    def __init__(self, params: ScorerParams) -> None:
        self.sign = params.sign
        self.section = params.section
        self.function = PythonScorer(params.source, params.batch_size)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(B,) float32 scores of B texts: sign times what the function returns.

        Raises: UserError as `PythonScorer`, and if a number is beyond float32.
        """
        scores = torch.tensor(self.function(texts), dtype=torch.float32)
        return self.sign * _finite(scores, texts, self.function.source, self.section)


class WeightedSum:
    """The first score plus the weighted others."""

    def __init__(self, first: Score, others: Sequence[tuple[float, Score]]) -> None:
        self.first = first
        self.others = others

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(B,) float32 scores of B texts.

        Raises: UserError if a sum is beyond float32.
        """
        total = self.first(texts)
        for weight, score in self.others:
            total = total + weight * score(texts)
        return _finite(total, texts, "the sum of reward.source and reward.others", RewardParams.section)


def output_index(model: PreTrainedModel, params: ScorerParams) -> int:
    """Index of the classifier's output called `label`.

    Raises: UserError that lists the labels.
    """
    labels: dict[int, str] = model.config.id2label
    label = params.label
    if isinstance(label, int) and label in labels:
        return label
    matches = [index for index, name in labels.items() if name == label]
    if len(matches) == 1:
        return matches[0]
    known = ", ".join(f"{index}: {name}" for index, name in labels.items())
    raise UserError(f"{params.section}.label = {label!r}: the {params.title} has no such output; it has {known}")


def output_values(model: PreTrainedModel, params: ScorerParams) -> Callable[[Tensor], Tensor]:
    """The function that `output` applies to (B, outputs) logits.

    A probability is the sigmoid of a classifier's one output, and of each output of a multi-label classifier (its
    `problem_type`); otherwise the classes exclude each other, and it is the softmax.

    Raises: UserError if the model is a regression, which has no probabilities.
    """
    if params.output == "logit":
        return torch.Tensor.float
    problem = model.config.problem_type
    if problem == "regression":
        raise UserError(
            f"{params.section}.output = 'probability': the {params.title} is a regression, which has none; take logit"
        )
    if problem == "multi_label_classification" or model.config.num_labels == 1:
        return torch.sigmoid
    return torch.nn.Softmax(dim=-1)


def load_reward_model(folder: Path, params: ScorerParams, machine: Machine) -> Score:
    """Loads the output of stage `reward` or `second_scorer`; training, evaluation and commands score through it.

    Args:
        folder: with the first classifier in it, and the n-th of `reward.others` in others/n, from 1.
        params: section `reward` or `judge.second_scorer`.
        machine: device and precision.
    Raises: UserError if a classifier or a function is not there, or not as the params say.
    """
    first, others = load_scorer(folder, params, machine), []
    for number, other in enumerate(params.further, start=1):
        with about(other):
            others.append((other.weight, load_scorer(folder_of(folder, number), of_other(params, other), machine)))
    return WeightedSum(first, others) if others else first


@contextmanager
def about(other: OtherScorerParams) -> Iterator[None]:
    """Adds to an error which of `reward.others` it is about."""
    try:
        yield
    except UserError as error:
        raise UserError(f"reward.others, {other.source}: {error}") from error


def load_scorer(folder: Path, params: ScorerParams, machine: Machine) -> Score:
    """One scorer; for section `reward`, without `reward.others`."""
    from rarlhf.models.loading import load_classifier

    if is_function(params.source):
        return FunctionScore(params)
    model, tokenizer = load_classifier(str(folder), key=f"{params.section}.source")
    return RewardModel(model, tokenizer, params, machine)


def scorer_hash(folder: Path, params: ScorerParams) -> str:
    """By what a scorer is known again: a classifier's files, or a function's name and code; by SHA-256."""
    if is_function(params.source):
        return f"{params.source} {code_fingerprint(params.source)['sha256']}"
    return files_hash(folder, sorted(path for path in folder.rglob("*") if path.is_file()))


def folder_of(folder: Path, number: int) -> Path:
    """Folder of the `number`-th of `reward.others`, from 1."""
    return folder / "others" / str(number)


def of_other(params: ScorerParams, other: OtherScorerParams) -> ScorerParams:
    """Section `reward` as if a further scorer were the only one."""
    given = other.model_dump(exclude={"weight"})
    if is_function(other.source):
        given = {"source": other.source}
    return params.model_copy(update=given | {"sign": 1, "others": []})
