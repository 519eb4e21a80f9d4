"""A policy's weights divided among the processes that train it (`runtime.sharding: full`).

Each process keeps its part of every matrix, of its gradient and of Adam's moments. A pass with gradients, through
`Policy.forward`, gathers one block's weights at a time and frees them again; its backward pass adds up the gradients
and leaves each process its part. Passes without gradients run inside `whole`, which gathers all weights once: decoding
would otherwise gather every block for every token.

This is PyTorch's `fully_shard` (Zhao et al. 2023, arXiv 2304.11277), stage 3 of ZeRO (Rajbhandari et al. 2020, arXiv
1910.02054). All processes must open `whole`, and make a pass with gradients, equally often.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from rarlhf.models.episodes import Episodes
from rarlhf.models.policy import Policy
from rarlhf.models.recompute import blocks_of
from rarlhf.models.reference import RefPolicy


def shard_policy(policy: Policy) -> None:
    """Divides the language model's weights; the value head, one row, stays whole in every process.

    Raises: UserError if the model's blocks are not of the kind that can be divided.
    """
    # Of outputs that are views: writing into one would lose its gradient. Nothing writes into what a policy gives.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    token = torch.full((1, 1), policy.sampling.end_id, device=policy.lm.device)
    seen = torch.ones_like(token, dtype=torch.bool)
    _shard(policy, policy.lm, lambda: policy(Episodes(token, seen, token, seen)))


def shard_reference(ref_policy: RefPolicy) -> RefPolicy:
    """The reference policy with its weights divided; while it is open, they are whole.

    Args:
        ref_policy: a language model of its own, not an adapter on the policy's.
    """
    with ref_policy() as lm:
        token = torch.zeros(1, 1, dtype=torch.long, device=lm.device)
        _shard(lm, lm, lambda: lm(input_ids=token, use_cache=False))

    @contextmanager
    def opened() -> Iterator[PreTrainedModel]:
        with whole(lm):
            yield lm

    return opened


@torch.no_grad()
def _shard(root: nn.Module, lm: PreTrainedModel, first_pass: Callable[[], object]) -> None:
    """Divides the weights of `lm`; those outside of its blocks are gathered by a pass of `root`, which contains it."""
    mesh = init_device_mesh(lm.device.type, (distributed.get_world_size(),))
    others = set(root.parameters()) - set(lm.parameters())
    for block in blocks_of(lm, "runtime.sharding = 'full'", "none"):
        fully_shard(block, mesh=mesh)
    fully_shard(root, mesh=mesh, ignored_params=others)
    for part in _parts(root):
        part.set_gradient_divide_factor(1.0)  # losses are sums over rows, not means over processes
        part.set_force_sum_reduction_for_comms(True)  # else by an operation that only NCCL has
    first_pass()  # of modules within modules, the first that runs becomes the root
    _free(root)


def _parts(module: nn.Module) -> list[FSDPModule]:
    """The modules whose weights are gathered together, outer ones first."""
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def _free(root: nn.Module) -> None:
    for part in _parts(root):
        part.reshard()


@contextmanager
def whole(module: nn.Module) -> Iterator[None]:
    """All weights of a divided `module`, for passes without gradients; a module that is not divided stays as it is."""
    parts = _parts(module)
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        _free(module)
        for block in parts[1:]:  # the outermost part is needed again as soon as a backward pass begins
            block.set_reshard_after_forward(True, recurse=False)


def whole_weights(lm: PreTrainedModel) -> dict[str, Tensor]:
    """All weights of a divided language model by name, for `save_pretrained`, in the first process; others get none.

    Of matrices that are tied only the first has an entry, as in a file of transformers.
    """
    weights: dict[str, Any] = get_model_state_dict(lm, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    tied = {name for name, _ in lm.named_parameters(remove_duplicate=False)} - {n for n, _ in lm.named_parameters()}
    return {name: value for name, value in weights.items() if name not in tied}


def held_whole(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Those that are not divided: nothing but the caller adds up their gradients."""
    return [parameter for parameter in parameters if not isinstance(parameter, DTensor)]


def own_part(tensor: Tensor) -> Tensor:
    """This process's part of a divided tensor, in the same memory; any other tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def like_parameter(part: Tensor, parameter: Tensor) -> Tensor:
    """This process's `part` as a tensor that is divided as `parameter` is; itself where that is not divided."""
    if not isinstance(parameter, DTensor):
        return part
    shape, stride = parameter.shape, parameter.stride()
    return DTensor.from_local(part, parameter.device_mesh, parameter.placements, shape=shape, stride=stride)


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> None:
    """Scales the gradients so that the norm of all together is at most `limit`, divided or not."""
    trained = [parameter for parameter in parameters if parameter.grad is not None]
    divided = [parameter for parameter in trained if isinstance(parameter, DTensor)]
    if not divided:
        nn.utils.clip_grad_norm_(trained, limit)
        return
    others = held_whole(trained)
    norms = [nn.utils.get_total_norm([p.grad for p in group if p.grad is not None]) for group in (divided, others)]
    total = torch.stack([n.full_tensor() if isinstance(n, DTensor) else n for n in norms]).norm()
    for group in (divided, others):
        nn.utils.clip_grads_with_norm_(group, limit, total)
