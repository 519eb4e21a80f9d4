"""An accelerator that is not there: a device of its own to PyTorch, whose tensors are computed by the CPU.

    with Standin() as device:
        move(model)
        ...                 # as on a device "cuda"
    device.waits            # where the program waited for the device

As on an accelerator, a tensor of the device does not mix with one of the CPU, except for a number, an index and a copy.
Numbers are those of the CPU. Compiled passes, autocast and streams are not stood in for.
"""

import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "standin"
_setup_privateuseone_for_python_backend(NAME)
torch.standin.get_amp_supported_dtype = lambda: [torch.bfloat16]  # type: ignore[attr-defined]
DEVICE = torch.device(NAME, 0)
COPIES = {"aten::_to_copy", "aten::copy_"}
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_"}  # take indices on the CPU too
SIZED_BY_VALUES = {"aten::nonzero", "aten::masked_select", "aten::_unique2"}  # the CPU waits for the result's size


class Held(Tensor):
    """A tensor of the device; `raw` is the CPU's."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> "Held":
        return torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined, no-any-return]
            cls, raw.size(), strides=raw.stride(), storage_offset=raw.storage_offset(), dtype=raw.dtype, device=DEVICE
        )

    def __init__(self, raw: Tensor) -> None:
        self.raw = raw

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"Held({tuple(self.shape)})"

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        raise RuntimeError("a tensor of the stand-in device is used outside its context")


class Standin(AbstractContextManager["Standin"]):
    """The device while the context lasts.

    Attributes:
        waits: the last lines of the program's stack at each wait for the device, the innermost last.
    """

    def __init__(self) -> None:
        self.waits: list[list[str]] = []
        self._contexts = ExitStack()

    def __enter__(self) -> Self:
        self._contexts.enter_context(_Functions(self))
        self._contexts.enter_context(_Operations(self))
        return self

    def __exit__(self, *error: object) -> None:
        self._contexts.close()

    def wait(self) -> None:
        """Notes that the program waits for the device."""
        self.waits.append([f"{line.filename}:{line.name}" for line in traceback.extract_stack(limit=30)])


class _Functions(TorchFunctionMode):
    """What PyTorch does in Python or C++ before it comes to operations."""

    def __init__(self, device: Standin) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if func is torch.tensor and torch.device(options.get("device") or "cpu") == DEVICE:
            return func(*args, **options | {"device": "cpu"}).to(DEVICE)
        if func is Tensor.tolist and isinstance(args[0], Held):
            self.device.wait()
            return args[0].raw.tolist()
        if func is Tensor.__getitem__ and isinstance(args[1], tuple):
            args = (args[0], tuple(torch.tensor(key) if isinstance(key, list) else key for key in args[1]))
        return func(*args, **options)


class _Operations(TorchDispatchMode):
    """Every operation: computed by the CPU on what tensors hold."""

    def __init__(self, device: Standin) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name, options = func._schema.name, dict(kwargs or {})
        tensors = [leaf for leaf in pytree.tree_leaves((args, options)) if isinstance(leaf, Tensor)]
        held = [tensor for tensor in tensors if isinstance(tensor, Held)]
        asked = options.get("device")
        there = bool(held) if asked is None else torch.device(asked).type == NAME
        if held and name not in COPIES:
            _refuse_mixed(name, args, [tensor for tensor in tensors if not isinstance(tensor, Held) and tensor.dim()])
        if held and _waits(name, args, there):
            self.device.wait()
        if asked is not None:
            options["device"] = torch.device("cpu")
        raw = func(*pytree.tree_map(_raw, tuple(args)), **pytree.tree_map(_raw, options))
        if name == "aten::copy_":
            return args[0]
        if not there or name == "aten::_local_scalar_dense":
            return raw
        out = pytree.tree_map(lambda value: Held(value) if isinstance(value, Tensor) else value, raw)
        return return_and_correct_aliasing(func, args, options, out) if asked is None else out


def move(module: nn.Module) -> None:
    """Puts a module's parameters and buffers on the device, each tensor once."""
    moved: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                new = nn.Parameter(Held(weight.detach().clone()), requires_grad=weight.requires_grad)
                part._parameters[name] = moved.setdefault(id(weight), new)  # tied weights stay tied
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = Held(buffer.clone())


def _raw(value: object) -> object:
    return value.raw if isinstance(value, Held) else value


def _waits(name: str, args: Sequence[Any], there: bool) -> bool:
    back = (name == "aten::_to_copy" and not there) or (name == "aten::copy_" and not isinstance(args[0], Held))
    return back or name == "aten::_local_scalar_dense" or name in SIZED_BY_VALUES


def _refuse_mixed(name: str, args: Sequence[Any], others: Sequence[Tensor]) -> None:
    if name in INDEXING and isinstance(args[0], Held):
        values = args[2] if len(args) > 2 else None
        others = [tensor for tensor in others if tensor is values]
    if others:
        raise RuntimeError(f"{name}: expected all tensors to be on the same device, {DEVICE}; one is on the CPU")
