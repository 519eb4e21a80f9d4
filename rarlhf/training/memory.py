"""Memory that a training takes, counted from the shape of its model.

What is held all the time (weights, gradient, Adam's moments) is exact. What a pass holds is counted from above, at 4
bytes a number; bfloat16 takes about half.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from rarlhf.config.errors import UserError
from rarlhf.config.params import Params
from rarlhf.models.hub import UnreachableError, fetch_config

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

GIB = 1024**3
BYTES = {"float32": 4, "bfloat16": 2}  # of one number, by its type
MOMENTS = 2  # of Adam, for every trained weight
# Numbers that a block keeps for its backward pass, for each token and unit of width: 16.1 were counted in GPT-2's and
# 12.5 in GPT-J's, without attention weights, which fused attention does not keep. As many again for gradients.
KEPT = 32
LOGITS = 3  # arrays of logits at a time: the model's, their float32 or shaped copy, and a gradient
PROCESSES = 2  # the fewest that share divided weights
TARGETS = ("q_proj", "v_proj", "c_attn")  # matrices with an adapter where `model.lora.target_modules` is null


@dataclass(frozen=True)
class Shape:
    """Sizes that decide the cost of a transformer."""

    parameters: int
    layers: int
    vocab_size: int
    matrices: int  # the parameters of the layers' matrices, which 8 bits can hold
    width: int  # hidden size
    cached: int  # numbers of keys and values for each token and layer
    sides: Mapping[str, int] = field(hash=False)  # inputs plus outputs of matrices, by the last part of their name


@dataclass(frozen=True)
class Memory:
    """Bytes on the device that trains, by what they are for."""

    weights: float  # of the language models: the policy's and, where all weights are trained, the reference's
    trained: float  # besides: adapters, gradient, Adam's moments, the mean of the last weights
    update: float  # what a forward and backward pass holds
    decoding: float  # what decoding holds: keys, values and logits; of divided weights also the rest of them

    @property
    def total(self) -> float:
        """At the fullest moment."""
        return self.weights + self.trained + max(self.update, self.decoding)


def transformer_shape(vocab_size: int, context: int, layers: int, width: int) -> Shape:
    """Shape of a GPT-2 or BERT-like model: 12 width^2 weights a layer, and its embeddings."""
    matrices = layers * 12 * width * width
    parameters = vocab_size * width + context * width + matrices
    return Shape(parameters, layers, vocab_size, matrices, width, 2 * width, {"c_attn": layers * 4 * width})


def model_shape(params: Params) -> Shape | None:
    """Shape of the base model; None if it is not known before the model is fetched or trained.

    Raises: UserError if the hub has no such model, or transformers has no causal language model of this kind.
    """
    if params.model.source == "scratch":
        p = params.model.scratch
        return transformer_shape(p.vocab_size, p.context, p.layers, p.width)
    folder = Path(params.model.source)
    if not folder.is_dir():
        try:
            folder = fetch_config(params.model.source, params.model.revision, "model.source").folder
        except UnreachableError:
            return None
    return _configured_shape(folder, params.model.source) if (folder / "config.json").is_file() else None


def _configured_shape(folder: Path, name: str) -> Shape | None:
    """Shape of the model that a configuration describes, nested or not; no weights are allocated."""
    import torch
    from transformers import AutoModelForCausalLM

    from rarlhf.models.loading import load_config

    config = load_config(str(folder), name)
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except ValueError as error:
        raise UserError(
            f"model.source = {name!r}: transformers has no causal language model of the kind {config.model_type}"
        ) from error
    except Exception:  # some models need real numbers while they are built; their errors can be of any class
        return None
    return _counted(model)


def _counted(model: "PreTrainedModel") -> Shape | None:
    """Shape of a model; None if its configuration has other names for layers and width."""
    text, head = model.config.get_text_config(), model.get_output_embeddings()
    names = ("num_hidden_layers", "vocab_size", "hidden_size")
    layers, vocab_size, width = (getattr(text, name, None) for name in names)
    if layers is None or vocab_size is None or width is None:
        return None
    named = [(name, module) for name, module in model.named_modules() if _is_matrix(module) and module is not head]
    sides: dict[str, int] = {}
    for name, module in named:
        last = name.rpartition(".")[2]
        sides[last] = sides.get(last, 0) + sum(module.weight.shape)
    heads = getattr(text, "num_attention_heads", None)
    each = getattr(text, "head_dim", None) or (width // heads if heads else width)
    cached = 2 * (getattr(text, "num_key_value_heads", None) or heads or 1) * each
    matrices = sum(module.weight.numel() for _, module in named)
    return Shape(model.num_parameters(), layers, vocab_size, matrices, width, cached, sides)


def _is_matrix(module: "torch.nn.Module") -> bool:
    import torch
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, torch.nn.Linear | Conv1D)


def training_memory(params: Params, shape: Shape) -> Memory:
    """Memory of the largest training of the pipeline; with `runtime.sharding: full`, that of one of two processes."""
    weights, trained = _lora_bytes(params, shape) if params.model.adapter == "lora" else _whole_bytes(params, shape)
    decoding = _decoding_bytes(params, shape)
    if params.runtime.sharding == "full":
        decoding += 4.0 * shape.parameters * (1 - 1 / PROCESSES)  # of one model at a time
        weights, trained = weights / PROCESSES, trained / PROCESSES
    return Memory(weights, trained, _update_bytes(params, shape), decoding)


def _whole_bytes(params: Params, shape: Shape) -> tuple[float, float]:
    """Policy and reference; gradient, moments, and the mean of the last weights or a fit's start."""
    line = params.methods.fit and params.fit.calibrated
    copies = 1 + MOMENTS + (1 if params.ppo.averaged or line else 0)
    return 2 * 4.0 * shape.parameters, copies * 4.0 * shape.parameters


def _lora_bytes(params: Params, shape: Shape) -> tuple[float, float]:
    """The frozen backbone; and in float32 two adapters, gradient, moments and the mean of the last weights."""
    model, size = params.model, BYTES[params.model.dtype]
    of_matrices = 1 if model.quantization == "int8" else size
    adapter = model.lora.r * sum(shape.sides.get(name, 0) for name in model.lora.target_modules or TARGETS)
    copies = 2 + 1 + MOMENTS + (1 if params.ppo.averaged else 0)
    return of_matrices * shape.matrices + float(size) * (shape.parameters - shape.matrices), copies * 4.0 * adapter


def _update_bytes(params: Params, shape: Shape) -> float:
    """Activations and logits of the largest micro-batch of PPO, SFT, a fit or a head."""
    episodes = 1 if params.ppo.micro_batch_size == "auto" else params.ppo.micro_batch_size  # auto takes what there is
    if params.methods.fit:
        episodes = max(episodes, params.fit.micro_batch_size)
    if params.methods.heads:
        episodes = max(episodes, params.head.micro_batch_size)
    sft = params.sft.micro_batch_size * params.sft.tokens
    rows = max(episodes * episode_tokens(params), sft)
    with_logits = max(episodes * params.ppo.max_new_tokens, sft)  # PPO computes those of responses alone
    blocks = KEPT + shape.layers if params.model.gradient_checkpointing else KEPT * shape.layers
    return 4.0 * (rows * blocks * shape.width + with_logits * LOGITS * shape.vocab_size)


def _decoding_bytes(params: Params, shape: Shape) -> float:
    """Keys and values of a rollout's batch, in the type of the weights, and one column of logits."""
    episodes = min(params.ppo.decode_batch_size, params.ppo.batch_size)
    cache = float(BYTES[params.model.dtype]) * episode_tokens(params) * shape.layers * shape.cached
    return episodes * (cache + 4.0 * LOGITS * shape.vocab_size)


def episode_tokens(params: Params) -> int:
    """Tokens of a query with its longest response."""
    return params.prompts.tokens + params.ppo.max_new_tokens
