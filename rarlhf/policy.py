"""A causal language model as a policy: log-probabilities of given responses, and a value head on the same backbone.

Letters: B episodes, Q query tokens (padded on the left), T response tokens (padded on the right), H hidden size.
Column t of every (B, T) result belongs to response token t and is computed from what stands before it.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rarlhf.params import Params


class Episodes(NamedTuple):
    """Queries with their responses."""

    queries: Tensor  # (B, Q) int64, padded on the left
    query_mask: Tensor  # (B, Q) bool, True = real token
    responses: Tensor  # (B, T) int64, padded on the right
    response_mask: Tensor  # (B, T) bool, True = real token, the end of text among them

    def rows(self, index: Tensor) -> "Episodes":
        """The episodes at `index` (int64 or bool), in that order."""
        return Episodes(*(field[index] for field in self))


class Sampling(NamedTuple):
    """What shapes the sampled distribution, and so must be the same wherever log-probabilities are compared."""

    temperature: float  # logits are divided by it
    min_new_tokens: int  # the end of text has probability 0 before this many tokens
    max_new_tokens: int  # T
    end_id: int  # the token that ends a response

    def shape(self, logits: Tensor, first: int) -> Tensor:
        """Logits of the distribution that is sampled, float32.

        Args:
            logits: (B, t, V) of response columns first..first + t - 1.
            first: index of the first column.
        """
        shaped = logits.float() / self.temperature
        forced = self.min_new_tokens - first
        if forced > 0:
            forbidden = torch.zeros_like(shaped, dtype=torch.bool)
            forbidden[:, :forced, self.end_id] = True
            shaped = shaped.masked_fill(forbidden, -torch.inf)
        return shaped


def sampling_of(params: Params, end_id: int) -> Sampling:
    """How responses are drawn, in training and in evaluation alike.

    With `min_counts_query` a query counts as padded to its full length, as it does in the `min_length` of transformers'
    `generate`, which the authors' code uses.
    """
    counted = params.prompts.tokens if params.ppo.min_counts_query else 0
    forced = max(0, params.ppo.min_new_tokens - counted)
    return Sampling(params.ppo.temperature, forced, params.ppo.max_new_tokens, end_id)


class PolicyOutput(NamedTuple):
    """What one forward pass over episodes gives; padding is not zeroed."""

    logprobs: Tensor  # (B, T) float32, log pi(a_t) in nats
    values: Tensor  # (B, T) float32, critic in score units
    entropy: Tensor  # (B, T) float32, nats, without gradient


class Policy(nn.Module):
    """A language model with a value head."""

    def __init__(self, lm: PreTrainedModel, sampling: Sampling) -> None:
        super().__init__()
        self.lm = lm
        self.sampling = sampling
        self.value_head = nn.Linear(lm.config.get_text_config().hidden_size, 1, device=lm.device)

    def forward(self, episodes: Episodes) -> PolicyOutput:
        """Log-probabilities, values and entropies of the responses, with gradients into backbone and head."""
        states = response_states(self.lm, episodes)
        shaped = self.sampling.shape(logits_of(self.lm, states), first=0)
        with torch.no_grad():
            entropy = torch.distributions.Categorical(logits=shaped, validate_args=False).entropy()
        return PolicyOutput(token_logprobs(shaped, episodes.responses), self.values_of(states), entropy)

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
    tokens = torch.cat([episodes.queries, episodes.responses], dim=1)[:, :-1]
    mask = torch.cat([episodes.query_mask, episodes.response_mask], dim=1)[:, :-1]
    output = lm.base_model(input_ids=tokens, attention_mask=mask.long(), position_ids=positions(mask), use_cache=False)
    return output.last_hidden_state[:, episodes.queries.shape[1] - 1 :]


def positions(mask: Tensor) -> Tensor:
    """(B, S) position of each token in its own text, 0 at the first real token; 0 on padding at the left."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0)


def logits_of(lm: PreTrainedModel, states: Tensor) -> Tensor:
    """(B, t, V) logits of (B, t, H) hidden states: only where they are needed, the vocabulary being the large axis."""
    return lm.get_output_embeddings()(states)


def token_logprobs(shaped_logits: Tensor, tokens: Tensor) -> Tensor:
    """(B, T) log-probabilities of `tokens` (B, T) under `shaped_logits` (B, T, V), without a (B, T, V) log-softmax."""
    chosen = shaped_logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return chosen - shaped_logits.logsumexp(dim=-1)


def response_logprobs(lm: PreTrainedModel, episodes: Episodes, sampling: Sampling) -> Tensor:
    """(B, T) log-probabilities of the responses under a plain language model, such as the reference policy."""
    shaped = sampling.shape(logits_of(lm, response_states(lm, episodes)), first=0)
    return token_logprobs(shaped, episodes.responses)
