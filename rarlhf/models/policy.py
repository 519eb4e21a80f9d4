"""A causal language model as a policy: log-probabilities of given responses, and a value head on the same backbone.

Letters: B episodes, Q query tokens (padded on the left), T response tokens (padded on the right), H hidden size.
Column t of every (B, T) result belongs to response token t and is computed from the tokens before it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from rarlhf.config.params import Params
from rarlhf.models.episodes import Episodes, Measured

SHORT = 256  # tokens
WIDENED = 2**25  # weights of a head in bfloat16 that are float32 at a time: 128 MiB
WORKING_SET = 2**19  # logits that one pass of the log-probabilities works on: 2 MiB in float32, which caches hold


class Sampling(NamedTuple):
    """What shapes the sampled distribution; it must be the same for all log-probabilities that are compared."""

    temperature: float  # logits are divided by it
    min_new_tokens: int  # the end of text has probability 0 before this many tokens
    max_new_tokens: int  # T
    end_id: int  # the token that ends a response

    def shape(self, logits: Tensor, first: int) -> Tensor:
        """Logits of the distribution that is sampled, float32 or finer; `logits` itself if nothing changes.

        Args:
            logits: (B, t, V) of response columns first..first + t - 1.
            first: index of the first column.
        """
        shaped = logits.to(torch.promote_types(logits.dtype, torch.float32))
        shaped = shaped if self.temperature == 1 else shaped / self.temperature
        forced = self.min_new_tokens - first
        if forced > 0:
            shaped = shaped.clone() if shaped is logits else shaped
            shaped[:, :forced, self.end_id] = -torch.inf
        return shaped


def sampling_of(params: Params, end_id: int) -> Sampling:
    """How responses are drawn, in training and in evaluation.

    With `min_counts_query` a query counts as padded to its full length, as in the `min_length` of transformers'
    `generate`, which the authors' code uses.
    """
    counted = params.prompts.tokens if params.ppo.min_counts_query else 0
    forced = max(0, params.ppo.min_new_tokens - counted)
    return Sampling(params.ppo.temperature, forced, params.ppo.max_new_tokens, end_id)


class PolicyOutput(NamedTuple):
    """The result of one forward pass over episodes; padding is not zeroed."""

    logprobs: Tensor  # (B, T) float32, log pi(a_t) in nats
    values: Tensor  # (B, T) float32, critic in score units


class Policy(nn.Module):
    """A language model with a value head."""

    def __init__(self, lm: PreTrainedModel, sampling: Sampling) -> None:
        super().__init__()
        self.lm = lm
        self.sampling = sampling
        width = lm.get_output_embeddings().weight.shape[-1]  # some models narrow their states before the head
        self.value_head = nn.Linear(width, 1, device=lm.device)

    def forward(self, episodes: Episodes) -> PolicyOutput:
        """Log-probabilities and values of the responses, with gradients into backbone and head."""
        states = response_states(self.lm, episodes)
        logprobs = token_logprobs(logits_of(self.lm, states), episodes.responses, self.sampling)
        return PolicyOutput(logprobs, self.values_of(states))

    @torch.no_grad()
    def measure(self, episodes: Episodes) -> Measured:
        """Log-probabilities and values, the same bits as those of `forward`, and entropies."""
        states = response_states(self.lm, episodes)
        logits = logits_of(self.lm, states)
        logprobs = token_logprobs(logits, episodes.responses, self.sampling)
        return Measured(logprobs, self.values_of(states), entropies(logits, self.sampling))

    def values_of(self, states: Tensor) -> Tensor:
        """(B, T) float32 values of (B, T, H) hidden states; the head always computes in float32."""
        with torch.autocast(states.device.type, enabled=False):
            return self.value_head(states.float()).squeeze(-1)


def reset_value_head(head: nn.Linear, generator: torch.Generator) -> None:
    """Fills the head from `generator` with PyTorch's own distribution for a linear layer."""
    bound = head.in_features**-0.5
    with torch.no_grad():
        for tensor in (head.weight, head.bias):
            tensor.copy_(torch.empty(tensor.shape).uniform_(-bound, bound, generator=generator))


def response_states(lm: PreTrainedModel, episodes: Episodes) -> Tensor:
    """(B, T, H) hidden states from which each response token is predicted."""
    return episode_states(lm, episodes)[:, episodes.queries.shape[1] - 1 :]


def episode_states(lm: PreTrainedModel, episodes: Episodes) -> Tensor:
    """(B, Q + T - 1, H) hidden states of the queries and of all response tokens but the last."""
    tokens = torch.cat([episodes.queries, episodes.responses], dim=1)[:, :-1]
    padding: dict[str, Tensor] = {}
    if not episodes.query_mask.all():  # padding on the right needs no mask: no real token attends to it
        mask = torch.cat([episodes.query_mask, episodes.response_mask], dim=1)[:, :-1]
        padding = {"attention_mask": mask.long(), "position_ids": positions(mask)}
    with _attention(tokens):
        output = lm.base_model(input_ids=tokens, use_cache=False, **padding)
    return output.last_hidden_state


def _attention(tokens: Tensor) -> AbstractContextManager[object]:
    """The attention kernel for `tokens` (B, S): the library's choice, but not for short texts in reduced precision.

    On a CPU the flash kernel's backward pass takes several times as long as plain products.
    """
    plain = tokens.device.type == "cpu" and torch.is_autocast_enabled("cpu") and tokens.shape[1] <= SHORT
    return sdpa_kernel(SDPBackend.MATH) if plain else nullcontext()


def positions(mask: Tensor) -> Tensor:
    """(B, S) position of each token in its own text, 0 at the first real token; 0 on padding at the left."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def logits_of(lm: PreTrainedModel, states: Tensor) -> Tensor:
    """(B, t, V) logits of (B, t, H) hidden states, float32 or finer in every precision of the rest.

    A pre-trained model's logits share an offset, -30 to -110 in GPT-2, which the log-softmax removes. At that size
    bfloat16 has steps of 0.25 to 0.5.
    """
    head = lm.get_output_embeddings()
    if not torch.is_autocast_enabled(states.device.type) and min(states.itemsize, head.weight.itemsize) >= 4:
        return head(states)
    if type(head) is nn.Linear:
        return _FullHead.apply(states, head.weight, head.bias)
    with torch.autocast(states.device.type, enabled=False):  # the layer of an adapter is more than its weight
        return head(states.to(head.weight.dtype)).float()


def logits_size(lm: PreTrainedModel) -> int:
    """V, the number of tokens that the model has logits for."""
    return int(lm.get_output_embeddings().weight.shape[0])


class _FullHead(torch.autograd.Function):
    """The output head with a float32 product in a pass of reduced precision; its gradients stay in that precision.

    Errors of the gradient's products are relative to the gradient, which has no offset.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(states, weight)
        kind = states.device.type
        ctx.dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        with torch.autocast(kind, enabled=False):
            logits = _full_product(states.float(), weight)
            return logits if bias is None else logits.add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        states, weight = ctx.saved_tensors
        gradient = upstream.to(ctx.dtype)
        of_states = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_states = (gradient @ weight.to(ctx.dtype)).to(states.dtype)
        if ctx.needs_input_grad[1]:
            of_weight = (gradient.flatten(0, -2).T @ states.to(ctx.dtype).flatten(0, -2)).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            of_bias = upstream.flatten(0, -2).sum(dim=0).to(weight.dtype)
        return of_states, of_weight, of_bias


def _full_product(states: Tensor, weight: Tensor) -> Tensor:
    """(B, t, V) float32 product of float32 `states` (B, t, H) with the rows of `weight` (V, H)."""
    product = _ONEDNN if _ONEDNN is not None and states.device.type == "cpu" else nn.functional.linear
    if weight.dtype == torch.float32:
        return product(states, weight)
    # A head stored in fewer bits is widened in pieces: the whole would be one of the largest tensors here.
    pieces = weight.split(max(1, WIDENED // weight.shape[1]))
    return torch.cat([product(states, piece.float()) for piece in pieces], dim=-1)


def _onednn_linear() -> Callable[[Tensor, Tensor], Tensor] | None:
    """OneDNN's float32 product, which torch.compile uses too; None if PyTorch is built without it.

    PyTorch itself uses MKL in float32.
    """
    operator = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
    return None if operator is None else lambda states, weight: operator(states, weight, None, "none", [], "")


_ONEDNN = _onednn_linear()


def token_logprobs(logits: Tensor, tokens: Tensor, sampling: Sampling) -> Tensor:
    """(B, T) float32 log-probabilities of `tokens` (B, T) under what `sampling` makes of `logits` (B, T, V).

    No second (B, T, V) tensor is made. The backward pass overwrites `logits` with the gradient, so it can run only
    once, and nothing else may use `logits` after it.
    """
    return _TokenLogprobs.apply(logits, tokens, sampling)


class _TokenLogprobs(torch.autograd.Function):
    """Forward: the chosen logit minus the log-sum-exp. Backward: (chosen - softmax) times upstream, in place."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, sampling: Sampling) -> Tensor:
        logprobs, totals = [], []
        for rows in _pieces(logits):
            shaped = sampling.shape(logits[rows], first=0)
            totals.append(shaped.logsumexp(dim=-1))
            logprobs.append(_chosen(shaped, tokens[rows]) - totals[-1])
        ctx.save_for_backward(logits, tokens, torch.cat(totals))
        ctx.sampling = sampling
        return torch.cat(logprobs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        logits, tokens, totals = ctx.saved_tensors
        for rows in _pieces(logits):
            gradient = ctx.sampling.shape(logits[rows], first=0).sub_(totals[rows].unsqueeze(-1)).exp_()
            index = tokens[rows].unsqueeze(-1)
            gradient.scatter_add_(-1, index, -torch.ones_like(index, dtype=gradient.dtype))
            gradient[:, : ctx.sampling.min_new_tokens, ctx.sampling.end_id] = 0.0  # a constant of minus infinity
            torch.mul(gradient, -upstream[rows].unsqueeze(-1) / ctx.sampling.temperature, out=logits[rows])
        return logits, None, None


def _pieces(logits: Tensor) -> list[slice]:
    """Rows of (B, T, V) logits in pieces of about `WORKING_SET` elements."""
    size = max(1, WORKING_SET // max(1, logits[0].numel()))
    return [slice(start, start + size) for start in range(0, len(logits), size)]


def _chosen(shaped_logits: Tensor, tokens: Tensor) -> Tensor:
    return shaped_logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def entropies(logits: Tensor, sampling: Sampling) -> Tensor:
    """(B, T) float32 entropies in nats where `sampling` shapes `logits` (B, T, V)."""
    shaped = (sampling.shape(logits[rows], first=0) for rows in _pieces(logits))
    return torch.cat([torch.special.entr(piece.softmax(dim=-1)).sum(dim=-1) for piece in shaped])


def response_logprobs(lm: PreTrainedModel, episodes: Episodes, sampling: Sampling) -> Tensor:
    """(B, T) log-probabilities of the responses under a plain language model, such as the reference policy."""
    return token_logprobs(logits_of(lm, response_states(lm, episodes)), episodes.responses, sampling)
