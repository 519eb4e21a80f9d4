"""Runs tasks of lm-evaluation-harness on a model in memory."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import TYPE_CHECKING, Any

from torch import Tensor

from rarlhf.config.errors import UserError
from rarlhf.models.context import positions_of
from rarlhf.models.way import without
from rarlhf.system.machine import Machine
from rarlhf.system.streams import seed_globals
from rarlhf.utility.results import TaskResult
from rarlhf.utility.tasks import ACCURACIES, Tasks

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BOOTSTRAP = 2  # draws for errors without a formula, which are not read; an accuracy's error has one


def run_tasks(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    tasks: Tasks,
    never: Sequence[int],
    machine: Machine,
) -> dict[str, TaskResult]:
    """The accuracy of a model in each task, or in each group that has an accuracy of its own.

    Args:
        model: causal language model; it is not changed.
        tokenizer: of the same vocabulary.
        tasks: what is asked.
        never: tokens of probability 0, as `own_way` of the model's folder says.
        machine: device and precision.

    Returns: name -> result, in the order of `utility.tasks`. Of a question that is longer than the model's context, the
        end is kept.

    Raises: UserError as `Tasks.load`, or if an accuracy is not finite.
    """
    from lm_eval.evaluator import evaluate

    loaded, entries = tasks.load()
    seed_globals("utility")
    with machine.autocast():
        found = evaluate(
            lm=_wrapped(model, tokenizer, tasks.params.batch_size, never),
            task_dict=loaded,
            limit=tasks.params.limit,
            bootstrap_iters=BOOTSTRAP,
            log_samples=False,
        )
    results: dict[str, TaskResult] = {}
    for group, members in entries:
        own = _result(group, found) if group else None
        counted = {group: own} if group and own else {name: _result(name, found) for name in members}
        results |= {name: result for name, result in counted.items() if result is not None}
    return results


def _wrapped(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", batch_size: int, never: Sequence[int]
) -> "LM":
    """The model as lm-eval knows models, with tokens that it never draws."""
    from lm_eval.models.huggingface import HFLM

    class Wrapped(HFLM):
        def _model_call(self, inps: Tensor, *args: Any, **options: Any) -> Tensor:
            logits: Tensor = super()._model_call(inps, *args, **options)
            return without(logits, never)

        def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True, **options: Any) -> Any:
            return super()._loglikelihood_tokens(requests, disable_tqdm=True, **options)

    return Wrapped(
        pretrained=model.eval(), tokenizer=tokenizer, batch_size=batch_size, max_length=positions_of(model.config)
    )


def _result(name: str, found: Mapping[str, Any]) -> TaskResult | None:
    """A task's or a group's accuracy; None for a group that has none of its own."""
    values = found["results"].get(name) or {}
    keys = {key.partition(",")[0]: key for key in reversed(list(values)) if "," in key}
    metric = next((metric for metric in ACCURACIES if metric in keys), None)
    if metric is None:
        return None
    accuracy = float(values[keys[metric]])
    if not isfinite(accuracy):
        raise UserError(f"utility.tasks: the accuracy of {name} is {accuracy}: the model diverged")
    error = values.get(f"{metric}_stderr,{keys[metric].partition(',')[2]}")
    known = float(error) if isinstance(error, int | float) and isfinite(error) else None  # lm-eval writes N/A
    return TaskResult(accuracy, known, int(values["sample_len"]))
