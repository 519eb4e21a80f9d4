"""LoRA adapters on a frozen language model (arXiv 2106.09685), in folders that plain peft reads.

An adapter's folder holds its configuration, its weights, the tokenizer, and a note of how the frozen base model was
stored in memory. The base model is not copied. The configuration names its folder, `models/base` in the pipeline, which
is searched for in the current folder and in the folders above the adapter's.
"""

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from rarlhf.config.errors import UserError
from rarlhf.config.params import LoRAParams
from rarlhf.models.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_weights, json_object
from rarlhf.models.loading import Storage, listed, not_finite
from rarlhf.models.tokens import part_tables
from rarlhf.models.way import own_way
from rarlhf.system.streams import seed_globals

if TYPE_CHECKING:  # peft takes a second to import, and most stages have no adapter
    from peft import PeftModel

BACKBONE = "backbone.json"  # our own note of what the adapter was trained on; peft's configuration lacks it
POLICY = "default"  # peft writes an adapter of this name without a folder of its own
REFERENCE = "reference"


def storage_in_training(folder: Path) -> Storage | None:
    """How the backbone was stored in memory when the adapter was trained; None if the folder has no note of it.

    Raises: UserError if the folder holds no adapter, or a note in another form.
    """
    adapter_weights(folder)
    note = folder / BACKBONE
    if not note.is_file():
        return None
    values = json_object(note)
    if set(values) != set(Storage._fields):
        raise UserError(f"{note} must have {', '.join(Storage._fields)}; make or copy the folder again")
    return Storage(**values)


def new_adapter(lm: PreTrainedModel, lora: LoRAParams, seed: int) -> "PeftModel":
    """Adds a new adapter to `lm`, in place; the adapter changes nothing until it is trained.

    Args:
        lm: the backbone; its own weights are frozen.
        lora: section `model.lora`.
        seed: of the adapter's initial weights, which are float32 for every backbone.
    Raises: UserError if the model has no modules of the names in `target_modules`.
    """
    from peft import LoraConfig, get_peft_model

    _refuse_unknown_targets(lm, lora.target_modules)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        fan_in_fan_out=any(_source(module) is Conv1D for module in lm.modules()),
    )
    seed_globals("adapter", seed)
    try:
        with _quiet():
            return get_peft_model(lm, config, POLICY)
    except ValueError as error:  # peft knows no default for this architecture
        raise UserError(_no_targets(lm, None)) from error


def copy_policy(model: "PeftModel", name: str) -> None:
    """Copies the policy's adapter as it is now to another, `name`, which is made or replaced, in place.

    Only the active adapter is trained, so the copy is frozen (peft).
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    weights = get_peft_model_state_dict(model, adapter_name=POLICY, save_embedding_layers=False)
    with _quiet():
        if name not in model.peft_config:
            model.add_adapter(name, copy(model.peft_config[POLICY]))
        set_peft_model_state_dict(model, weights, adapter_name=name)


def train_tokens(model: "PeftModel", tokens: Sequence[int], rows: torch.Tensor) -> None:
    """Makes the input embeddings of some tokens part of the policy's adapter, in place; no other number changes.

    Args:
        model: a backbone with an adapter `POLICY`, whose output table stays without them (`rarlhf.models.tokens`).
        tokens: (K,) ids, which no response has.
        rows: (K, H) their embeddings, trained in float32 on every backbone.
    """
    from peft.utils import set_additional_trainable_modules

    lm, config = model.get_base_model(), model.peft_config[POLICY]
    part_tables(lm, max(tokens) + 1)
    config.trainable_token_indices = list(tokens)
    set_additional_trainable_modules(lm, config, lm.config.to_dict(), POLICY)
    trained = lm.get_input_embeddings().token_adapter.trainable_tokens_delta
    trained[POLICY] = torch.nn.Parameter(rows.to(lm.device, torch.float32))


def attach(model: "PreTrainedModel | PeftModel", folder: Path, name: str, trainable: bool = False) -> "PeftModel":
    """Adds the adapter in `folder` to a backbone under `name`, in place; the first adapter becomes the active one.

    Raises: UserError if the folder holds no adapter in safetensors, or one that does not fit the backbone: a weight is
        missing, unknown, of another shape, or not finite.
    """
    from peft import PeftModel

    weights = adapter_weights(folder)
    options = {"is_trainable": trainable, "torch_device": str(model.device)}
    tokens = _input_tokens(folder)
    if tokens:
        part_tables(model.get_base_model() if isinstance(model, PeftModel) else model, max(tokens) + 1)
    try:
        with _quiet():
            if isinstance(model, PeftModel):
                model.load_adapter(str(folder), name, **options)
            else:
                model = PeftModel.from_pretrained(model, str(folder), name, **options)
            faults = list(_faults(model, weights, name))
    except (RuntimeError, ValueError, TypeError, KeyError, OSError, SafetensorError) as error:
        raise UserError(_unfit(folder, model, " ".join(str(error).split())[:200])) from error
    if faults:
        raise UserError(_unfit(folder, model, "; ".join(faults)))
    return model


def _input_tokens(folder: Path) -> list[int]:
    """Tokens whose input embeddings the adapter in a folder has, and which no response has."""
    trained = json_object(folder / ADAPTER_CONFIG).get("trainable_token_indices")
    never = own_way(folder).never
    return list(trained) if isinstance(trained, list) and trained and set(trained) <= set(never) else []


def _unfit(folder: Path, model: "PreTrainedModel | PeftModel", detail: str) -> str:
    return f"the adapter in {folder} does not fit the base model {model.name_or_path} ({detail})"


def _faults(model: "PeftModel", file: Path, name: str) -> Iterator[str]:
    """What is wrong with an adapter's weights: peft only warns of missing ones and ignores unknown ones silently."""
    from peft import get_peft_model_state_dict

    wanted = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    with safe_open(file, framework="pt") as tensors:
        there = set(tensors.keys())
    infinite = not_finite((key, wanted[key]) for key in there & set(wanted))
    kinds = {"missing adapter keys": set(wanted) - there, "not part of it": there - set(wanted), "not finite": infinite}
    yield from (f"{kind}: {listed(keys)}" for kind, keys in kinds.items() if keys)


def save_adapter(model: "PeftModel", tokenizer: PreTrainedTokenizerBase, folder: Path, storage: Storage) -> None:
    """Writes the policy's adapter and the tokenizer to `folder`, as plain peft loads them; equal weights, equal bytes.

    Args:
        model: a backbone with an adapter `POLICY`.
        tokenizer: of the base model.
        folder: where to write.
        storage: how the backbone is stored in memory; it is written beside the weights.
    """
    from peft import get_peft_model_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    tensors = get_peft_model_state_dict(model, adapter_name=POLICY, save_embedding_layers=False)
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(flat, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    (folder / BACKBONE).write_text(json.dumps(storage._asdict()) + "\n", encoding="utf-8")
    config = copy(model.peft_config[POLICY])
    config.inference_mode = True
    if isinstance(config.target_modules, set):
        config.target_modules = sorted(config.target_modules)  # the order of a set differs between processes
    config.save_pretrained(str(folder))
    tokenizer.save_pretrained(folder)


def _source(module: torch.nn.Module) -> type:
    """The module's class before it was quantised."""
    return getattr(module, "source_cls", type(module))


def _target_names(lm: PreTrainedModel) -> list[str]:
    """Paths of the matrices that can have an adapter: all but the output embeddings, which are tied or wide."""
    output = lm.get_output_embeddings()
    linear = (torch.nn.Linear, Conv1D)
    return [name for name, module in lm.named_modules() if isinstance(module, linear) and module is not output]


def _refuse_unknown_targets(lm: PreTrainedModel, targets: list[str] | None) -> None:
    paths = [f".{path}" for path in _target_names(lm)]
    unknown = [target for target in targets or [] if not any(path.endswith(f".{target}") for path in paths)]
    if unknown:
        raise UserError(_no_targets(lm, unknown))


def _no_targets(lm: PreTrainedModel, unknown: list[str] | None) -> str:
    names = sorted({path.rpartition(".")[2] for path in _target_names(lm)})
    reason = "no default is known for this model" if unknown is None else f"no module is called {', '.join(unknown)}"
    return f"model.lora.target_modules: {reason}; {type(lm).__name__} has {', '.join(names)}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Hides three warnings of peft: a renamed option, an option that it then corrects, and missing weights."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to", UserWarning)
        warnings.filterwarnings("ignore", "Found missing adapter keys", UserWarning)  # `attach` refuses them
        yield
