"""The reference policy: the model that the trainer compares against."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from transformers import PreTrainedModel

RefPolicy = Callable[[], AbstractContextManager[PreTrainedModel]]
"""Opens the reference policy: inside the context the language model that it yields has the reference's weights.

With adapters that model is the policy's own backbone. Inside the context it has the reference's weights for everybody.
"""


def frozen(lm: PreTrainedModel) -> RefPolicy:
    """A separate language model as the reference, frozen in place."""
    lm.eval().requires_grad_(False)
    return lambda: nullcontext(lm)
