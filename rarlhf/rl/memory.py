"""The largest micro-batch: the most episodes whose forward and backward pass fits the memory.

Sizes are tried once before a training with texts of the largest length, so that no iteration runs out of memory.
"""

from collections.abc import Callable

import torch

from rarlhf.config.errors import UserError
from rarlhf.config.params import PPOParams
from rarlhf.models.episodes import Episodes
from rarlhf.models.policy import Policy
from rarlhf.rl.parts import Session
from rarlhf.system.machine import Machine

SPARE = 0.1  # share of the device's memory that a trial leaves free, for fragmentation and the library itself
MOMENTS = 2  # of Adam, for every trained weight; they exist from the first step on


def with_micro_batch(ppo: PPOParams, policy: Policy, query_tokens: int, session: Session) -> PPOParams:
    """Section `ppo` with a number as `micro_batch_size`: `auto` becomes the largest that fits an accelerator.

    Args:
        ppo: the section.
        policy: its weights are not changed.
        query_tokens: of the longest query.
        session: on a CPU `auto` becomes the whole mini-batch; of several processes the smallest number counts; the
            recorder reports it.
    Raises: UserError if not even one episode fits.
    """
    if ppo.micro_batch_size != "auto":
        return ppo
    found = ppo.mini_batch_size
    if session.machine.device.type != "cpu":
        copies = MOMENTS + (ppo.averaged > 0)  # and the mean of the last iterations' weights
        found = largest(ppo.mini_batch_size, lambda size: _trial(policy, size, query_tokens, session.machine, copies))
        found = -int(session.world.max(-found))
        session.recorder.say(f"ppo.micro_batch_size auto: {found} episodes fit the memory at a time")
    return ppo.model_copy(update={"micro_batch_size": found})


def largest(mini_batch_size: int, trial: Callable[[int], None]) -> int:
    """The largest divisor of `mini_batch_size` with which `trial` does not run out of memory.

    Raises: UserError if there is none.
    """
    for size in (n for n in range(mini_batch_size, 0, -1) if mini_batch_size % n == 0):
        try:
            trial(size)
        except torch.OutOfMemoryError:
            continue
        return size
    raise UserError(
        "one episode's forward and backward pass does not fit the memory: lower prompts.tokens or ppo.max_new_tokens, "
        "or set model.gradient_checkpointing, model.adapter: lora or model.quantization: int8"
    )


def _trial(policy: Policy, size: int, query_tokens: int, machine: Machine, copies: int = MOMENTS) -> None:
    """A forward and backward pass over `size` episodes of full length, with the memory filled as in training.

    Args:
        policy: its weights are not changed.
        size: episodes.
        query_tokens: of each.
        machine: with the accelerator.
        copies: of the trained weights that a training holds besides them and their gradient.
    """
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    try:
        held = [torch.empty_like(parameter) for parameter in trained for _ in range(copies)]
        room = torch.cuda.get_device_properties(machine.device).total_memory * SPARE
        held.append(torch.empty(int(room), dtype=torch.uint8, device=machine.device))
        with machine.autocast():
            output = policy(_longest(policy, size, query_tokens, machine))
        (output.logprobs.sum() + output.values.sum()).backward()
    finally:
        policy.zero_grad(set_to_none=True)
        held = []
        torch.cuda.empty_cache()


def _longest(policy: Policy, size: int, query_tokens: int, machine: Machine) -> Episodes:
    def full(width: int) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = torch.zeros(size, width, dtype=torch.long, device=machine.device)
        return tokens, torch.ones_like(tokens, dtype=torch.bool)

    return Episodes(*full(query_tokens), *full(policy.sampling.max_new_tokens))
