"""The reference policy: what the trainer compares against, however it is held in memory."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from transformers import PreTrainedModel

RefPolicy = Callable[[], AbstractContextManager[PreTrainedModel]]
"""Opens the reference policy: inside the context the language model that it yields has the reference's weights.

With adapters that model is the policy's own backbone, so nothing else may run on it until the context is left.
"""


def frozen(lm: PreTrainedModel) -> RefPolicy:
    """A language model of its own as the reference, frozen in place."""
    lm.eval().requires_grad_(False)
    return lambda: nullcontext(lm)
