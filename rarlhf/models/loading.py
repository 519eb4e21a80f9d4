"""Models and tokenizers from local folders or the hub: safetensors only, no remote code, one clear line on failure.

transformers fills missing weights with random numbers and drops unknown ones, and only warns. Here a model is loaded
exactly as in its file, or refused.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rarlhf.config.errors import UserError
from rarlhf.config.params import ModelParams
from rarlhf.models.files import pickled_files, weight_files

# Weights are trained and compared in float32 even if they are stored in fewer bits; autocast sets a run's precision.
WEIGHTS: dict[str, Any] = {"use_safetensors": True, "dtype": torch.float32}
UNKNOWN = "not part of it"  # weights that the file has and the model does not
SHOWN = 3  # names of weights that an error lists
# Weights that files may have and models do not: masks of attention that older versions stored (GPT-2, GPT-J, GPT-Neo),
# and the layer over the first token of an encoder, which some classifiers do not use (RoBERTa's).
LEFTOVERS = re.compile(r"(^|\.)((attn|attention)\.(masked_)?bias$|pooler\.)")


class Storage(NamedTuple):
    """How a frozen backbone is stored in memory; as in section `model`."""

    dtype: str  # of the weights that are not quantised
    quantization: str
    int8_threshold: float

    def options(self, device: torch.device) -> dict[str, Any]:
        """Keywords of `from_pretrained`.

        LLM.int8 (arXiv 2208.07339) quantises the matrices of the blocks; embeddings, norms and head keep their dtype.
        """
        options: dict[str, Any] = {"dtype": getattr(torch, self.dtype)}
        if self.quantization == "int8":
            config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=self.int8_threshold)
            options |= {"quantization_config": config, "device_map": {"": device}}
        return options


def storage_of(params: ModelParams) -> Storage:
    """How the backbone is stored by section `model`."""
    return Storage(params.dtype, params.quantization, params.int8_threshold)


def load_config(folder: str, name: str) -> Any:
    """The configuration of a language model, called `name` in errors.

    Raises: UserError if transformers knows no such model.
    """
    return _pretrained(AutoConfig, folder, "model.source", name)


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder with a causal language model, with the end of text as padding if there is none.

    Raises: UserError if it is not there or has no end of text.
    """
    return _with_padding(_tokenizer(source, "model.source"), source)


def load_causal_lm(
    folder: str, dtype: torch.dtype = torch.float32, name: str | None = None, key: str = "model.source"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in eval mode with its tokenizer, with the end of text as padding if there is none.

    Args:
        folder: local one.
        dtype: of the weights.
        name: what an error calls it; None: its folder.
        key: of params.yaml, that names it.
    Raises: UserError if it is not there, is an adapter, weights are missing, or its tokenizer has no end of text.
    """
    tokenizer = _tokenizer(folder, key, name)
    return _language_model(folder, name, key, dtype=dtype), _with_padding(tokenizer, name or folder)


def load_backbone(source: str, storage: Storage, device: torch.device) -> PreTrainedModel:
    """The language model that adapters are put on, in eval mode.

    Raises: UserError if it is not there, is an adapter itself, or weights are missing.
    """
    return _language_model(source, **storage.options(device)).to(device)


def load_network(folder: Path, key: str) -> PreTrainedModel:
    """A network of a language model's shape that is none and has no tokenizer, in eval mode with float32 weights.

    Args:
        folder: local one.
        key: of params.yaml, that names it.
    Raises: UserError if it is not there, or weights are missing, unknown or not finite.
    """
    return _model(AutoModelForCausalLM, str(folder), key, None, **WEIGHTS).eval()


def _language_model(
    source: str, name: str | None = None, key: str = "model.source", **options: object
) -> PreTrainedModel:
    if Path(source, "adapter_config.json").is_file():  # transformers would silently load its base
        raise UserError(
            f"{source} is an adapter, and a whole model is needed: set model.adapter: lora, or make one of it with "
            f"`rarlhf merge {source} FOLDER`"
        )
    model = _model(AutoModelForCausalLM, source, key, name, **(WEIGHTS | options))
    _make_writable(model)
    return model.eval()


def _make_writable(model: PreTrainedModel) -> None:
    """Sets `do_sample` where a published generation configuration has a temperature but no `do_sample`.

    transformers loads such a configuration, and refuses to save it after a training.
    """
    try:
        model.generation_config.validate(strict=True)
    except ValueError:
        model.generation_config.do_sample = True


def load_classifier(
    folder: str, name: str | None = None, key: str = "reward.source"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A sequence classifier in eval mode with its tokenizer.

    Args:
        folder: local one.
        name: what an error calls it; None: its folder.
        key: of params.yaml, that names it.
    Raises: UserError if it is not there, is an adapter, weights are missing, or its tokenizer cannot pad.
    """
    if Path(folder, "adapter_config.json").is_file():  # transformers would add it to a base with a random head
        raise UserError(f"{key} = {name or folder!r} is an adapter, and a whole classifier is needed: merge it first")
    tokenizer = _tokenizer(folder, key, name)
    model = _model(AutoModelForSequenceClassification, folder, key, name, **WEIGHTS)
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"the tokenizer of {name or folder} has no padding token; set pad_token in its tokenizer_config.json"
        )
    _pad_behind(model, tokenizer)
    return model.eval(), tokenizer


def _pad_behind(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Makes a score depend on its text alone and not on the rest of its batch: padding follows the text.

    A decoder's score is read at the last token that is not padding by its configuration.
    """
    tokenizer.padding_side = tokenizer.truncation_side = "right"
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = tokenizer.pad_token_id


def _with_padding(tokenizer: PreTrainedTokenizerBase, source: str) -> PreTrainedTokenizerBase:
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of {source} has no end-of-text token; set eos_token in its tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _tokenizer(folder: str, key: str, name: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder; transformers makes an empty one if the folder has none."""
    tokenizer = _pretrained(AutoTokenizer, folder, key, name)
    files = {"tokenizer.json", *tokenizer.vocab_files_names.values()}
    there = any((Path(folder) / file).is_file() for file in files) or not tokenizer.vocab_files_names
    if not there or not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):
        raise UserError(
            f"{key} = {name or folder!r}: there is no tokenizer in this folder; copy the files of the model's own into "
            "it (tokenizer.json and tokenizer_config.json)"
        )
    return tokenizer


def _model(auto_class: Any, folder: str, key: str, name: str | None = None, **options: object) -> PreTrainedModel:
    """A model with exactly the weights of its file."""
    reported = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # they are reported, and refused below
    model, found = _pretrained(auto_class, folder, key, name, **options, **reported)
    faults = list(_faults(model, found))
    if faults:
        raise UserError(
            f"{key} = {name or folder!r}: its weights are not those of a {type(model).__name__}: {'; '.join(faults)}. "
            + _mend(Path(folder), auto_class, faults)
        )
    return model


def _faults(model: PreTrainedModel, found: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the weights of a model, each with the names of the first few.

    Args:
        model: as transformers loaded it.
        found: its report; a tied weight that is stored once is not reported as missing.
    """
    buffers = {_short_name(name) for name, _ in model.named_buffers()}  # older versions stored buffers too
    unknown = [
        name for name in found["unexpected_keys"] if _short_name(name) not in buffers and not LEFTOVERS.search(name)
    ]
    others = [
        f"{name} ({_shape(there)} there, {_shape(here)} by config.json)" for name, there, here in _misfits(model, found)
    ]
    kinds = {"missing": found["missing_keys"], UNKNOWN: unknown, "of another shape": others}
    yield from (f"{kind}: {listed(names)}" for kind, names in kinds.items() if names)
    if not any(kinds.values()):
        quantised = [(f"{name}.weight", module.weight.SCB) for name, module in _quantised(model)]
        scales = [(name, scale) for name, scale in quantised if scale is not None]
        infinite = not_finite([*model.named_parameters(), *scales])
        yield from [f"not finite: {listed(infinite)}"] if infinite else []


def _misfits(model: PreTrainedModel, found: Mapping[str, Any]) -> list[tuple[str, Sequence[int], Sequence[int]]]:
    """Weights of another shape: name, shape in the file, the model's; transformers does not report 8-bit ones."""
    shapes = [
        (f"{name}.weight", tuple(module.weight.shape), (module.out_features, module.in_features))
        for name, module in _quantised(model)
    ]
    return [*found["mismatched_keys"], *(entry for entry in shapes if entry[1] != entry[2])]


def _quantised(model: PreTrainedModel) -> list[tuple[str, Any]]:
    """The 8-bit matrices of a model, with their names."""
    return [(name, module) for name, module in model.named_modules() if type(module).__name__ == "Linear8bitLt"]


def _short_name(name: str) -> str:
    """The last two parts of a weight's name: a checkpoint of a model without its head lacks the first part."""
    return ".".join(name.split(".")[-2:])


def _shape(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes)) or "a number"


def listed(names: Iterable[str]) -> str:
    """The first few names in order, and the number of the others."""
    first, rest = sorted(names)[:SHOWN], len(set(names)) - SHOWN
    return ", ".join(first) + (f" and {rest} more" if rest > 0 else "")


@torch.no_grad()
def not_finite(weights: Iterable[tuple[str, torch.Tensor]]) -> list[str]:
    """Names of the floating-point tensors with a value that is infinite or not a number."""
    floats = ((name, value) for name, value in weights if value.is_floating_point() and value.numel())
    return [name for name, value in floats if not all(map(torch.isfinite, value.aminmax()))]


def _mend(folder: Path, auto_class: Any, faults: Sequence[str]) -> str:
    """What to do about weights that do not fit."""
    made_for = " ".join(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or [])
    if auto_class is AutoModelForSequenceClassification and "SequenceClassification" not in made_for:
        return f"A score needs a sequence classifier, and config.json names {made_for or 'none'}: give one"
    if auto_class is AutoModelForCausalLM and "SequenceClassification" in made_for:
        return f"A language model is needed, and config.json names {made_for}, a classifier: give one"
    if all(fault.startswith(UNKNOWN) for fault in faults):
        return "If the model is right without them, load it by transformers, save it to another folder and give that"
    return "Copy or fetch the folder again; if config.json was edited, undo that"


def _pretrained(auto_class: Any, folder: str, key: str, name: str | None = None, **options: object) -> Any:
    if not Path(folder).is_dir():
        raise UserError(f"{key} = {name or folder!r}: there is no such folder")
    try:
        return auto_class.from_pretrained(folder, trust_remote_code=False, local_files_only=True, **options)
    except Exception as error:  # anything that transformers and its readers of files raise
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        detail = kind + " ".join(str(error).split())[:200]
        reason = f"{key} = {name or folder!r}: this folder cannot be loaded as such a model ({detail})"
        if pickled_files(Path(folder)) and not weight_files(Path(folder)):
            reason = no_safetensors(key, name or folder, "this folder cannot be loaded, it has pickled weights alone")
        raise UserError(reason) from error


def no_safetensors(key: str, source: str, what: str) -> str:
    """One line for a model whose weights are pickled."""
    return (
        f"{key} = {source!r}: {what}, and no pickle is read here; `rarlhf convert {source} FOLDER` makes safetensors "
        f"of weights that you trust, and FOLDER is then the {key}; or set a revision that has them, such as refs/pr/N "
        "of a pull request on its page"
    )


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Writes what `from_pretrained` loads: safetensors, configuration, tokenizer.

    Args:
        model: for its configuration, and for its weights where `weights` is None.
        tokenizer: of the model.
        folder: where to write.
        weights: by name.
    """
    model.save_pretrained(folder, state_dict=weights)
    tokenizer.save_pretrained(folder)
