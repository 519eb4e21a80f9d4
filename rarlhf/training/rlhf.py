"""From folders to a trained policy: puts together what `PPOTrainer` needs and saves what comes out."""

from collections.abc import Sequence
from pathlib import Path

import torch

from rarlhf.config.errors import UserError
from rarlhf.config.params import Params
from rarlhf.data.queries import PlainPrompts
from rarlhf.decoding.compatible import refuse_incompatible
from rarlhf.messages.progress import Recorder
from rarlhf.models.backbone import load_trainable
from rarlhf.models.fused import fuse_activations
from rarlhf.models.policy import Policy, reset_value_head, sampling_of
from rarlhf.models.recompute import recompute_blocks
from rarlhf.rewards.scorers import Score
from rarlhf.rl.memory import with_micro_batch
from rarlhf.rl.ppo import PPOTrainer
from rarlhf.system.distributed import World
from rarlhf.system.machine import Machine
from rarlhf.system.streams import generator

_FULL = (
    "the accelerator's memory is full ({}); set ppo.micro_batch_size to auto or lower, or lower ppo.decode_batch_size "
    "or reward.batch_size. The last checkpoint is kept"
)


def train_policy(  # noqa: PLR0913, PLR0917, each is a different thing
    queries: Sequence[list[int]],
    sft: Path,
    folder: Path,
    checkpoint: Path,
    score: Score,
    params: Params,
    seed: int,
    machine: Machine,
    recorder: Recorder,
    world: World | None = None,
    plain_prompts: PlainPrompts | None = None,
) -> list[dict[str, float]]:
    """Trains the SFT model by PPO and writes the policy to `folder`; returns one record per iteration.

    Args:
        queries: token ids of the training queries.
        sft: folder of the SFT model or adapter: the start and, frozen, the reference policy.
        folder: where the policy is written, as `from_pretrained` of transformers, or of peft for an adapter, loads it.
        checkpoint: file to go on from, and to write to.
        score: the reward model.
        params: all parameters; `risk.measure` none is plain RLHF.
        seed: of sampling, order and the value head.
        machine: device and precision.
        recorder: takes the numbers of each iteration.
        world: the processes that train together, each of which calls this; the first one writes. None: this one alone.
        plain_prompts: messages of queries in a chat template; None where there is none.
    """
    start = load_trainable(sft, params.model, seed, machine.device)
    refuse_incompatible(start.lm, start.tokenizer)
    fuse_activations(start.lm)
    tokenizer, ref_policy = start.tokenizer, start.ref_policy()
    policy = Policy(start.lm, sampling_of(params, tokenizer.eos_token_id))
    if params.model.gradient_checkpointing:
        recompute_blocks(policy.lm)
    reset_value_head(policy.value_head, generator("value_head", seed))
    ppo = with_micro_batch(params.ppo, policy, max(map(len, queries)), machine, recorder, world or World())
    trainer = PPOTrainer(
        policy, ref_policy, tokenizer, score, ppo, params.kl, params.risk, seed, machine, recorder, world, plain_prompts
    )
    try:
        records = trainer.train(queries, checkpoint)
    except torch.OutOfMemoryError as error:
        raise UserError(_FULL.format(str(error).split(". ")[0])) from error
    if trainer.world.rank == 0:
        start.save(folder)
    return records
