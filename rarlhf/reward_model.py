"""The reward model: any sequence classifier that scores text, with its own tokenizer."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rarlhf.errors import UserError
from rarlhf.params import RewardParams
from rarlhf.runtime import Machine

Score = Callable[[Sequence[str]], Tensor]  # B texts to (B,) scores, higher is better; a reward model is one


class RewardModel:
    """Scores texts by one raw logit of a classifier; higher is better."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, params: RewardParams, machine: Machine
    ) -> None:
        self.model = model.eval().to(machine.device)
        self.tokenizer = tokenizer
        self.params = params
        self.machine = machine
        self.output = output_index(model, params.label)

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Scores texts, batched by length.

        Args:
            texts: B texts; what is longer than `reward.max_length` tokens is cut at the end.
        Returns: (B,) float32 on the CPU: sign * logit.
        Raises: UserError if a score is not finite.
        """
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        scores = torch.empty(len(texts))
        for start in range(0, len(order), self.params.batch_size):
            rows = order[start : start + self.params.batch_size]
            scores[rows] = self._logits([texts[i] for i in rows])
        if not torch.isfinite(scores).all():
            bad = int((~torch.isfinite(scores)).nonzero()[0])
            raise UserError(
                f"the reward model gave {scores[bad]} for the text {texts[bad][:60]!r}; check reward.source"
            )
        return self.params.sign * scores

    def _logits(self, texts: list[str]) -> Tensor:
        encoded = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.params.max_length, return_tensors="pt"
        ).to(self.machine.device)
        with self.machine.autocast():
            logits = self.model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits
        return logits[:, self.output].float().cpu()


def output_index(model: PreTrainedModel, label: str | int) -> int:
    """Index of the classifier's output called `label`.

    Raises: UserError naming the labels there are.
    """
    labels: dict[int, str] = model.config.id2label
    if isinstance(label, int) and label in labels:
        return label
    matches = [index for index, name in labels.items() if name == label]
    if len(matches) == 1:
        return matches[0]
    known = ", ".join(f"{index}: {name}" for index, name in labels.items())
    raise UserError(f"reward.label = {label!r}: the reward model has no such output; it has {known}")


def load_reward_model(folder: Path, params: RewardParams, machine: Machine) -> RewardModel:
    """Loads the classifier that stage `reward` made or fetched."""
    from rarlhf.loading import load_classifier

    model, tokenizer = load_classifier(str(folder))
    return RewardModel(model, tokenizer, params, machine)
