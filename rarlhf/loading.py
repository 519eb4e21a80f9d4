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


def load_tokenizer(source: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """A causal language model's tokenizer, the end of text serving as padding where there is none.

    Raises: UserError if it is not there, cannot be fetched, or has no end of text.
    """
    return _with_padding(_pretrained(AutoTokenizer, source, revision, "model.source"), source)


def load_causal_lm(
    source: str, revision: str | None = None, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in eval mode with its tokenizer, the end of text serving as padding where there is none.

    Raises: UserError if it is not there, cannot be fetched, is an adapter, or its tokenizer has no end of text.
    """
    return _language_model(source, revision, dtype=dtype), load_tokenizer(source, revision)


def load_backbone(source: str, storage: Storage, device: torch.device) -> PreTrainedModel:
    """The language model that adapters are put on, in eval mode.

    Raises: UserError if it is not there or is an adapter itself.
    """
    return _language_model(source, None, **storage.options(device)).to(device)


def _language_model(source: str, revision: str | None, **options: object) -> PreTrainedModel:
    if Path(source, "adapter_config.json").is_file():  # transformers would load its base without a word
        raise UserError(
            f"{source} is an adapter, and a whole model is needed: set model.adapter: lora, or make one of it with "
            f"`rarlhf merge {source} FOLDER`"
        )
    model = _pretrained(AutoModelForCausalLM, source, revision, "model.source", **(WEIGHTS | options))
    return model.eval()


def load_classifier(source: str, revision: str | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A sequence classifier in eval mode with its tokenizer.

    Raises: UserError if it is not there, cannot be fetched, or its tokenizer cannot pad.
    """
    key = "reward.source"
    model = _pretrained(AutoModelForSequenceClassification, source, revision, key, **WEIGHTS)
    tokenizer = _pretrained(AutoTokenizer, source, revision, key)
    if tokenizer.pad_token_id is None:
        raise UserError(f"the tokenizer of {source} has no padding token; set pad_token in its tokenizer_config.json")
    return model.eval(), tokenizer


def _with_padding(tokenizer: PreTrainedTokenizerBase, source: str) -> PreTrainedTokenizerBase:
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of {source} has no end-of-text token; set eos_token in its tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _pretrained(auto_class: Any, source: str, revision: str | None, key: str, **options: object) -> Any:
    local = Path(source).is_dir()
    pinned = options if local else options | {"revision": revision}
    try:
        return auto_class.from_pretrained(source, trust_remote_code=False, **pinned)
    except (OSError, ValueError) as error:
        raise UserError(_reason(source, key, local, error)) from error


def _reason(source: str, key: str, local: bool, error: Exception) -> str:
    detail = " ".join(str(error).split())[:200]
    if local:
        return f"{key} = {source!r}: this folder cannot be loaded as such a model ({detail})"
    return (
        f"{key} = {source!r}: neither a local folder nor to be had from the hub; without network download it elsewhere "
        f"and give its folder as {key} ({detail})"
    )


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes what `from_pretrained` loads: safetensors, configuration, tokenizer."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
