"""How well a model's hidden states tell the classes of rows apart: logistic regression, measured on test rows.

Letters for shapes: N rows, H width of the model.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from rarlhf.config.errors import UserError
from rarlhf.config.utility import ClassificationParams
from rarlhf.data.classes import area_under_curve
from rarlhf.data.rows import Row
from rarlhf.models.context import positions_of
from rarlhf.models.states import mean_states
from rarlhf.system.machine import Machine
from rarlhf.system.streams import derived_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
STEPS = 1000  # of L-BFGS at most; the loss is convex, and some dozens do


class Labelled(NamedTuple):
    """Rows of known class."""

    texts: list[str]
    wanted: BoolArray  # (N,)


class ClassifierRows(NamedTuple):
    """The rows of all models' classifiers."""

    train: Labelled
    test: Labelled


def choose_rows(train: Sequence[Row], test: Sequence[Row], params: ClassificationParams) -> ClassifierRows:
    """Labelled rows by chance, the same for all models.

    Args:
        train: training rows.
        test: test rows.
        params: section `utility.classification`.

    Raises: UserError if the chosen rows of a split are not of both classes.
    """
    chosen = [
        _chosen(rows, size, name, params.seed)
        for name, rows, size in (("training", train, params.rows), ("test", test, params.test_rows))
    ]
    return ClassifierRows(*chosen)


def _chosen(rows: Sequence[Row], size: int, name: str, seed: int) -> Labelled:
    known = [row for row in rows if row.label is not None]
    order = np.random.default_rng(derived_seed("classifier rows", name, seed)).permutation(len(known))
    some = [known[place] for place in order[:size]]
    classes = {row.label for row in some}
    if len(classes) < 2:
        what = f"all {len(some):,} of them are of one class" if some else "there is none"
        key = "rows" if name == "training" else "test_rows"
        raise UserError(
            f"utility.classification.{key} = {size}: the classifier needs labelled {name} rows of both classes, and "
            f"{what}; set utility.classification.rows to 0, or give rows of both"
        )
    return Labelled([row.text for row in some], np.array([row.label == 1 for row in some]))


def classification_auc(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    rows: ClassifierRows,
    params: ClassificationParams,
    machine: Machine,
) -> float:
    """Area under the curve, on the test rows, of a logistic regression on the model's mean last hidden states.

    Args:
        model: causal language model; it is not changed.
        tokenizer: of the same vocabulary.
        rows: of both classes.
        params: section `utility.classification`, of which `tokens`, `batch_size` and `penalty` are read.
        machine: device and precision.

    Returns: number in [0, 1]: the chance that a wanted test row scores above another one.
    """
    model.eval()
    context = positions_of(model.config)
    limit = min(params.tokens, context) if context else params.tokens

    def states(texts: Sequence[str]) -> FloatArray:
        ids = [ids[:limit] for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
        found: FloatArray = mean_states(model, ids, params.batch_size, machine).double().numpy()
        return found

    known, asked = states(rows.train.texts), states(rows.test.texts)
    centre, spread = known.mean(axis=0), known.std(axis=0)
    spread[spread == 0] = 1.0
    weights = logistic_regression((known - centre) / spread, rows.train.wanted, params.penalty)
    scores = (asked - centre) / spread @ weights
    return area_under_curve(torch.from_numpy(scores), torch.from_numpy(rows.test.wanted))


def logistic_regression(features: FloatArray, wanted: BoolArray, penalty: float) -> FloatArray:
    """Coefficients that minimise the mean logistic loss and half the penalty times their squares.

    The intercept is fitted without a penalty and left out of the result: it does not change an order.

    Args:
        features: (N, H).
        wanted: (N,), both classes.
        penalty: > 0.

    Returns: (H,), by L-BFGS in double precision from 0, the same for the same input.
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    signs = np.where(wanted, 1.0, -1.0)

    def loss(values: FloatArray) -> tuple[float, FloatArray]:
        margins = signs * (features @ values[:-1] + values[-1])
        slopes = -signs * expit(-margins) / len(signs)
        gradient = np.append(features.T @ slopes + penalty * values[:-1], slopes.sum())
        return float(np.logaddexp(0.0, -margins).mean() + penalty / 2 * values[:-1] @ values[:-1]), gradient

    start = np.zeros(features.shape[1] + 1)
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": STEPS, "gtol": 1e-8, "ftol": 1e-12})
    return np.asarray(found.x[:-1], dtype=np.float64)
