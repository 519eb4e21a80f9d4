"""Device, precision and randomness."""

import random

import numpy as np
import pytest
import torch

from rarlhf.config.errors import UserError
from rarlhf.config.params import RuntimeParams
from rarlhf.system.machine import Machine, prepare
from rarlhf.system.streams import derived_seed, generator, seed_globals

pytestmark = pytest.mark.usefixtures("restored")


def runtime(
    device: str = "cpu", precision: str = "float32", decode: str = "eager", sharding: str = "none"
) -> RuntimeParams:
    return RuntimeParams(device=device, threads=1, precision=precision, decode=decode, sharding=sharding)


def test_a_derived_seed_is_the_same_number_for_ever() -> None:
    # first 8 bytes of SHA-256 of "rollout/1/2", big-endian, without the last bit
    assert derived_seed("rollout", 1, 2) == 4026272045419448628
    assert derived_seed("rollout", 12) != derived_seed("rollout", 1, 2)
    assert 0 <= derived_seed("x") < 2**63


def test_a_generator_is_a_pure_function_of_its_names() -> None:
    draws = [torch.rand(3, generator=generator(*names)) for names in (("a", 1), ("a", 1), ("a", 2))]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_the_global_generators_are_seeded() -> None:
    draws = []
    for name in ("a", "a", "b"):
        seed_globals(name)
        draws.append((random.random(), float(np.random.random()), float(torch.rand(()))))
    assert draws[0] == draws[1]
    assert not set(draws[0]) & set(draws[2])


def test_prepare_sets_threads_and_determinism() -> None:
    torch.set_num_threads(2)
    assert prepare(runtime()) == Machine(torch.device("cpu"), torch.float32)
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()


def test_decoding_is_compiled_where_it_is_asked_to_be() -> None:
    assert not prepare(runtime()).compiled
    assert prepare(runtime(decode="compiled")).compiled


def test_weights_are_divided_where_it_is_asked() -> None:
    assert not prepare(runtime()).sharded
    assert prepare(runtime(sharding="full")).sharded


def test_on_cuda_what_has_no_deterministic_kernel_warns_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    prepare(runtime("cuda"))
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    prepare(runtime("cpu"))
    assert not torch.is_deterministic_algorithms_warn_only_enabled()


def test_a_missing_cuda_device_is_refused_and_auto_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        UserError, match="runtime.device = 'cuda': no CUDA device .*; run where there is one, or set cpu"
    ):
        prepare(runtime("cuda"))
    assert prepare(runtime("auto")).device.type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert prepare(runtime("auto")).device.type == "cuda"


@pytest.mark.parametrize(
    ("amx", "avx512", "dtype"),
    [(False, False, torch.float32), (True, False, torch.bfloat16), (False, True, torch.bfloat16)],
)
def test_auto_precision_is_reduced_only_where_the_processor_has_it_fast(
    amx: bool, avx512: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    assert prepare(runtime(precision="auto")).dtype == dtype
    assert prepare(runtime(precision="float32")).dtype == torch.float32
    assert prepare(runtime(precision="bfloat16")).dtype == torch.bfloat16


@pytest.mark.parametrize("fast", [True, False])
def test_auto_precision_on_cuda_asks_the_device(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: fast)
    assert prepare(runtime("cuda", "auto")).dtype == (torch.bfloat16 if fast else torch.float32)


def test_forward_passes_run_in_the_machines_precision() -> None:
    left, right = torch.ones(2, 3), torch.ones(3, 5)
    for dtype in (torch.float32, torch.bfloat16):
        with Machine(torch.device("cpu"), dtype).autocast():
            assert (left @ right).dtype == dtype
