"""Models and tokenizers from local folders or the hub: safetensors only, no remote code, one clear line on failure."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rarlhf.errors import UserError
from rarlhf.model_files import pickled_files, weight_files
from rarlhf.params import ModelParams

# Weights are trained and compared in float32, whatever they are stored in; a run's precision is that of its autocast.
WEIGHTS: dict[str, Any] = {"use_safetensors": True, "dtype": torch.float32}


class Storage(NamedTuple):
    """How a frozen backbone is held in memory; as in section `model`."""

    dtype: str  # of what is not quantised
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
    """How section `model` wants the backbone held."""
    return Storage(params.dtype, params.quantization, params.int8_threshold)


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder with a causal language model, the end of text serving as padding where there is none.

    Raises: UserError if it is not there or has no end of text.
    """
    return _with_padding(_pretrained(AutoTokenizer, source, "model.source"), source)


def load_causal_lm(
    folder: str, dtype: torch.dtype = torch.float32, name: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in eval mode with its tokenizer, the end of text serving as padding where there is none.

    Args:
        folder: local one.
        dtype: of the weights.
        name: what an error calls it; None: its folder.
    Raises: UserError if it is not there, is an adapter, or its tokenizer has no end of text.
    """
    tokenizer = _pretrained(AutoTokenizer, folder, "model.source", name)
    return _language_model(folder, name, dtype=dtype), _with_padding(tokenizer, name or folder)


def load_backbone(source: str, storage: Storage, device: torch.device) -> PreTrainedModel:
    """The language model that adapters are put on, in eval mode.

    Raises: UserError if it is not there or is an adapter itself.
    """
    return _language_model(source, **storage.options(device)).to(device)


def _language_model(source: str, name: str | None = None, **options: object) -> PreTrainedModel:
    if Path(source, "adapter_config.json").is_file():  # transformers would load its base without a word
        raise UserError(
            f"{source} is an adapter, and a whole model is needed: set model.adapter: lora, or make one of it with "
            f"`rarlhf merge {source} FOLDER`"
        )
    model = _pretrained(AutoModelForCausalLM, source, "model.source", name, **(WEIGHTS | options))
    _make_writable(model)
    return model.eval()


def _make_writable(model: PreTrainedModel) -> None:
    """Says that it is for sampling of a published generation configuration that names a temperature without saying so.

    transformers reads such a one, and refuses to write it once a trainer has touched it.
    """
    try:
        model.generation_config.validate(strict=True)
    except ValueError:
        model.generation_config.do_sample = True


def load_classifier(folder: str, name: str | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A sequence classifier in eval mode with its tokenizer.

    Args:
        folder: local one.
        name: what an error calls it; None: its folder.
    Raises: UserError if it is not there or its tokenizer cannot pad.
    """
    key = "reward.source"
    model = _pretrained(AutoModelForSequenceClassification, folder, key, name, **WEIGHTS)
    tokenizer = _pretrained(AutoTokenizer, folder, key, name)
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"the tokenizer of {name or folder} has no padding token; set pad_token in its tokenizer_config.json"
        )
    return model.eval(), tokenizer


def _with_padding(tokenizer: PreTrainedTokenizerBase, source: str) -> PreTrainedTokenizerBase:
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of {source} has no end-of-text token; set eos_token in its tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _pretrained(auto_class: Any, folder: str, key: str, name: str | None = None, **options: object) -> Any:
    if not Path(folder).is_dir():
        raise UserError(f"{key} = {name or folder!r}: there is no such folder")
    try:
        return auto_class.from_pretrained(folder, trust_remote_code=False, local_files_only=True, **options)
    except (OSError, ValueError) as error:
        detail = " ".join(str(error).split())[:200]
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


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes what `from_pretrained` loads: safetensors, configuration, tokenizer."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
