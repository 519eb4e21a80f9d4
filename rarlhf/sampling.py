"""Sampling responses with a key-value cache.

Each token is drawn by inverting the distribution at one uniform number that belongs to its episode and column. The
draws therefore do not depend on how episodes are batched, and a run that resumes draws what it would have drawn.
"""

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from rarlhf.errors import UserError
from rarlhf.policy import Episodes, Sampling, logits_of, positions


@torch.no_grad()
def sample_responses(
    lm: PreTrainedModel, queries: Tensor, query_mask: Tensor, sampling: Sampling, uniforms: Tensor
) -> Episodes:
    """Samples one response to each query.

    Args:
        lm: the language model, in eval mode.
        queries: (B, Q) int64, padded on the left.
        query_mask: (B, Q) bool.
        sampling: temperature, lengths and end of text.
        uniforms: (B, T) float32 in [0, 1), one for each token that may be drawn.
    Returns: the episodes; responses are as wide as the longest of them and hold the end id after their end.
    Raises: UserError if the model gives no distribution to draw from.
    """
    rows = len(queries)
    cache, mask, tokens = DynamicCache(config=lm.config), query_mask, queries
    running = torch.ones(rows, dtype=torch.bool, device=queries.device)
    drawn, real = [], []
    for t in range(sampling.max_new_tokens):
        output = lm.base_model(
            input_ids=tokens,
            attention_mask=mask.long(),
            position_ids=positions(mask)[:, -tokens.shape[1] :],
            past_key_values=cache,
            use_cache=True,
        )
        shaped = sampling.shape(logits_of(lm, output.last_hidden_state[:, -1:]), first=t)[:, 0]
        token = torch.where(running, invert(shaped, uniforms[:, t]), sampling.end_id)
        drawn.append(token)
        real.append(running)
        running = running & (token != sampling.end_id)
        if not running.any():
            break
        tokens = token.unsqueeze(1).clamp(max=shaped.shape[-1] - 1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    responses = torch.stack(drawn, dim=1)
    if (responses >= shaped.shape[-1]).any():  # asked once, not at every token: each time waits for the device
        raise UserError(
            "the model's logits are not finite, so nothing can be drawn from them: its weights are too large"
        )
    return Episodes(queries, query_mask, responses, torch.stack(real, dim=1))


def invert(shaped_logits: Tensor, uniforms: Tensor) -> Tensor:
    """Tokens at which each row's cumulative distribution first exceeds its uniform number.

    Args:
        shaped_logits: (B, V) float.
        uniforms: (B,) float32 in [0, 1).
    Returns: (B,) int64; never a token of probability 0; V where the logits are not finite.
    """
    cumulative = torch.softmax(shaped_logits, dim=-1).cumsum(dim=-1)
    total = cumulative[:, -1:]
    threshold = torch.minimum(uniforms.unsqueeze(1) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(1)


def left_pad(rows: list[list[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Stacks token lists of unequal lengths: (B, Q) int64 padded on the left, and their (B, Q) bool mask."""
    width = max(len(row) for row in rows)
    tokens = torch.tensor([[pad_id] * (width - len(row)) + row for row in rows], device=device)
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows], device=device)
    return tokens, mask
