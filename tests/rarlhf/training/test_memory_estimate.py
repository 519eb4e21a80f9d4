"""Memory of a training: GPT-J by hand, and small models byte by byte."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.gptj import SMALL_SHAPE, make_model
from rarlhf.config.params import Params
from rarlhf.decoding.eager import EagerDecoder
from rarlhf.models.backbone import load_trainable
from rarlhf.models.episodes import Episodes
from rarlhf.models.policy import Policy, Sampling
from rarlhf.models.recompute import recompute_blocks
from rarlhf.training.memory import KEPT, Shape, model_shape, training_memory
from tests.rarlhf.small import changed

WIDTH, LAYERS, VOCABULARY = 4096, 28, 50400
MATRICES = LAYERS * 12 * WIDTH**2  # 4 of attention, 8 of the MLP: 5,637,144,576
# Embeddings and a head with a bias; in each layer a norm (2) and the biases of the MLP (4 + 1); a norm at the end.
OTHERS = 2 * VOCABULARY * WIDTH + VOCABULARY + LAYERS * (2 + 5) * WIDTH + 2 * WIDTH
SIDES = {"q_proj": LAYERS * 2 * WIDTH, "v_proj": LAYERS * 2 * WIDTH, "fc_in": LAYERS * 5 * WIDTH}
GPTJ = Shape(MATRICES + OTHERS, LAYERS, VOCABULARY, MATRICES, WIDTH, 2 * WIDTH, SIDES)
LORA = {"model.adapter": "lora", "model.dtype": "bfloat16", "model.quantization": "int8", "model.lora.r": 16}
WORK = {"ppo.micro_batch_size": 16, "ppo.decode_batch_size": 32, "ppo.batch_size": 128, "prompts.tokens": 64}
WORK |= {"ppo.max_new_tokens": 48, "sft.micro_batch_size": 1, "sft.tokens": 8, "ppo.averaged": 0.0}


@pytest.fixture
def alone(params: Params) -> Params:
    """SFT and PPO of the preset, without other trainings."""
    none = {"methods.fit": {}, "methods.heads": {}, "methods.headed": {}, "methods.tuned": {}}
    return changed(params, none | WORK)


def test_gptj_by_hand(alone: Params) -> None:
    assert GPTJ.parameters == 6_050_882_784  # as transformers counts them
    memory = training_memory(changed(alone, LORA | {"model.gradient_checkpointing": True}), GPTJ)
    assert memory.weights == MATRICES + 2 * OTHERS  # 5.25 GiB in 8 bits and 0.77 GiB in 16
    adapter = LAYERS * 2 * 16 * (WIDTH + WIDTH)  # two matrices, A and B: 7,340,032
    assert memory.trained == 5 * 4 * adapter  # policy, reference, gradient, two moments: 0.14 GiB
    rows, logits = 16 * (64 + 48), 16 * 48 * VOCABULARY
    assert memory.update == 4 * (rows * WIDTH * (LAYERS + KEPT) + 3 * logits)  # block inputs, one block, 3 x 0.14 GiB
    assert memory.decoding == 32 * (112 * LAYERS * 2 * WIDTH * 2 + 4 * 3 * VOCABULARY)  # keys and values in 16 bits
    assert memory.total == memory.weights + memory.trained + max(memory.update, memory.decoding)
    plain = training_memory(changed(alone, LORA), GPTJ)
    assert plain.update - memory.update == 4 * rows * WIDTH * (LAYERS - 1) * KEPT - 4 * rows * WIDTH * LAYERS
    wide = training_memory(changed(alone, LORA | {"model.quantization": "none"}), GPTJ)
    assert wide.weights - memory.weights == MATRICES  # 5.25 GiB more


def test_all_weights_of_gptj_by_hand(alone: Params) -> None:
    memory = training_memory(alone, GPTJ)
    assert memory.weights + memory.trained == 5 * 4 * GPTJ.parameters  # 113 GiB
    averaged = training_memory(changed(alone, {"ppo.averaged": 0.2}), GPTJ)
    assert averaged.trained - memory.trained == 4 * GPTJ.parameters


def test_two_processes_hold_half_of_the_weights_each_and_one_model_whole_as_they_decode(alone: Params) -> None:
    whole = training_memory(alone, GPTJ)
    half = training_memory(changed(alone, {"runtime.sharding": "full"}), GPTJ)
    assert (half.weights, half.trained, half.update) == (whole.weights / 2, whole.trained / 2, whole.update)
    assert half.decoding - whole.decoding == 2 * GPTJ.parameters


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("kind", ["gpt2", "gptj"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_small_model_takes_the_bytes_that_were_counted(
    kind: str, checkpointing: bool, alone: Params, tmp_path: Path
) -> None:
    sizes = {key: value for key, value in SMALL_SHAPE.items() if kind == "gptj" or key != "rotary_dim"}
    edits: dict[str, object] = {"model.source": str(tmp_path), "model.gradient_checkpointing": checkpointing}
    edits |= {"ppo.micro_batch_size": 4, "ppo.decode_batch_size": 4, "prompts.tokens": 9, "ppo.max_new_tokens": 8}
    edits |= {} if kind == "gpt2" else LORA | {"model.quantization": "none"}
    params = changed(alone, edits)
    make_model(kind, sizes, params.model.dtype, tmp_path)
    shape = model_shape(params)
    assert shape is not None
    memory = training_memory(params, shape)

    start = load_trainable(tmp_path, params.model, 1, torch.device("cpu"))
    policy = Policy(start.lm, Sampling(1.0, 0, 8, 0))
    learned = [weight for weight in start.lm.parameters() if weight.requires_grad]
    held = sum(weight.nbytes for weight in start.lm.parameters())
    if kind == "gpt2":
        assert memory.weights == 2 * held  # the reference is a copy
        assert memory.trained == 3 * held
    else:
        assert memory.weights == held - sum(weight.nbytes for weight in learned)
        assert memory.trained == 5 * sum(weight.nbytes for weight in learned)  # two adapters, gradient, two moments

    if checkpointing:
        recompute_blocks(start.lm)
    kept = saved_bytes(policy)
    assert kept < memory.update < 8 * kept
    cache = EagerDecoder(start.lm, torch.ones(4, 9, dtype=torch.bool), 8)
    with torch.no_grad():
        cache(torch.ones(4, 9, dtype=torch.long))
    cached = sum(room.nbytes for layer in cache.cache.layers for room in layer.rooms)  # type: ignore[attr-defined]
    assert memory.decoding == cached + 4 * 4 * 3 * shape.vocab_size


def saved_bytes(policy: Policy) -> int:
    """Bytes that a forward pass of 4 episodes keeps for its backward pass, besides the weights."""
    weights = {weight.untyped_storage().data_ptr() for weight in (*policy.parameters(), *policy.buffers())}
    found: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    queries, responses = (torch.ones(4, width, dtype=torch.long) for width in (9, 8))
    episodes = Episodes(queries, queries.bool(), responses, responses.bool())
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy(episodes)
    return sum(tensor.untyped_storage().nbytes() for place, tensor in found.items() if place not in weights)
