"""From folders to a trained policy: builds what `PPOTrainer` needs and saves the result."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from rarlhf.config.errors import UserError
from rarlhf.config.params import Params
from rarlhf.data.queries import PlainPrompts
from rarlhf.decoding.compatible import refuse_incompatible
from rarlhf.models.backbone import load_trainable
from rarlhf.models.fused import fuse_activations
from rarlhf.models.policy import Policy, reset_value_head, sampling_of
from rarlhf.models.recompute import recompute_blocks
from rarlhf.models.sharding import whole_weights
from rarlhf.rewards.scorers import Score
from rarlhf.rl.memory import with_micro_batch
from rarlhf.rl.parts import Models, Recipe, Session
from rarlhf.rl.ppo import PPOTrainer
from rarlhf.system.streams import generator

_FULL = (
    "the accelerator's memory is full ({}); set ppo.micro_batch_size to auto or lower, or lower ppo.decode_batch_size "
    "or reward.batch_size. The last checkpoint is kept"
)


class Places(NamedTuple):
    """What a training reads and writes."""

    sft: Path  # folder of the SFT model or adapter: the start and, frozen, the reference policy
    out: Path  # where the policy is written, as `from_pretrained` of transformers, or of peft for an adapter, loads it
    checkpoint: Path  # file to continue from if it exists, and to write to


def train_policy(
    queries: Sequence[list[int]],
    places: Places,
    score: Score,
    params: Params,
    session: Session,
    *,
    seed: int,
    plain_prompts: PlainPrompts | None = None,
) -> list[dict[str, float]]:
    """Trains the SFT model by PPO and writes the policy; returns one record per iteration.

    Args:
        queries: token ids of the training queries.
        places: what is read and written.
        score: the reward model.
        params: all parameters; `risk.measure` none is plain RLHF.
        session: machine, recorder and the processes that train together; each calls this, and the first one writes.
        seed: of sampling, order and the value head.
        plain_prompts: messages of queries in a chat template; None without a template.
    Raises: UserError if the model cannot be trained here or the memory is full, and as `PPOTrainer.train`.
    """
    start = load_trainable(places.sft, params.model, seed, session.machine.device)
    refuse_incompatible(start.lm, start.tokenizer)
    fuse_activations(start.lm)
    ref_policy = start.ref_policy()
    policy = Policy(start.lm, sampling_of(params, start.tokenizer.eos_token_id))
    if params.model.gradient_checkpointing:
        recompute_blocks(policy.lm)
    reset_value_head(policy.value_head, generator("value_head", seed))
    ppo = with_micro_batch(params.ppo, policy, max(map(len, queries)), session)
    models = Models(policy, ref_policy, start.tokenizer, score, plain_prompts)
    trainer = PPOTrainer(models, Recipe(ppo, params.kl, params.risk, seed), session)
    try:
        records = trainer.train(queries, places.checkpoint)
    except torch.OutOfMemoryError as error:
        raise UserError(_FULL.format(str(error).split(". ")[0])) from error
    weights = whole_weights(policy.lm) if session.machine.sharded else None  # all processes take part
    if session.world.rank == 0:
        start.save(places.out, weights)
    return records
