"""Models of the pipeline in memory: whole ones, or adapters that share one frozen language model, the backbone.

Code that trains or measures gets its models from here and need not know which kind it has.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rarlhf.config.params import ModelParams
from rarlhf.models.adapters import POLICY, REFERENCE, attach, copy_policy, new_adapter, save_adapter, train_tokens
from rarlhf.models.files import base_of, is_adapter
from rarlhf.models.loading import load_backbone, load_causal_lm, load_tokenizer, save_model, storage_of
from rarlhf.models.reference import RefPolicy, frozen
from rarlhf.models.tokens import add_rows

if TYPE_CHECKING:
    from peft import PeftModel


class Backbone:
    """One frozen language model with any number of adapters on it."""

    def __init__(self, folder: Path, params: ModelParams, device: torch.device) -> None:
        self.folder = folder
        self.lm = load_backbone(str(folder), storage_of(params), device).requires_grad_(False)
        self.model: PreTrainedModel | PeftModel = self.lm  # with its first adapter a PeftModel around `lm`
        self.bare = False  # whether the adapters are switched off

    def attach(self, folder: Path, name: str, trainable: bool = False) -> None:
        """Adds the adapter in `folder` under `name`."""
        self.model = attach(self.model, folder, name, trainable)

    @contextmanager
    def using(self, name: str | None) -> Iterator[PreTrainedModel]:
        """The language model with the adapter `name`, or bare; afterwards as it was before. Uses may be nested."""
        if self.model is self.lm:
            yield self.lm
            return
        before = None if self.bare else self.model.active_adapter
        self._switch(name)
        try:
            yield self.lm
        finally:
            self._switch(before)

    def _switch(self, name: str | None) -> None:
        layers = self.model.base_model
        if name is None:
            layers.disable_adapter_layers()
        else:
            if self.bare:
                layers.enable_adapter_layers()
            self.model.set_adapter(name, inference_mode=name != POLICY)
        self.bare = name is None


class Trainable(Protocol):
    """A model to train."""

    lm: PreTrainedModel  # the language model, with the trained weights in it
    tokenizer: PreTrainedTokenizerBase

    @property
    def model(self) -> "PreTrainedModel | PeftModel":
        """The same model in the form that transformers' trainers need."""

    def ref_policy(self) -> RefPolicy:
        """A frozen copy of the model as it is now; call this before training."""

    def snapshot(self, slot: str) -> RefPolicy:
        """A frozen copy of the model as it is now, in eval mode, also during training.

        The next copy of the same slot replaces it.
        """

    def add_tokens(self, tokens: Sequence[int], rows: Tensor) -> None:
        """Adds tokens (K,) that are never drawn, with input embeddings (K, H), which are trained; the tokenizer stays.

        The output table may lack them afterwards; where it has them, their logits are not to be used.
        """

    def save(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Writes what was trained to `folder`; of a whole model `weights` by name, where they are not in the model."""


class WholeModel:
    """All weights are trained; the reference policy is a frozen copy."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        lm, self.tokenizer = load_causal_lm(str(folder))
        self.lm = lm.to(device)

    @property
    def model(self) -> PreTrainedModel:
        """The model itself."""
        return self.lm

    def ref_policy(self) -> RefPolicy:
        """A copy of all weights."""
        return frozen(deepcopy(self.lm))

    def snapshot(self, slot: str) -> RefPolicy:
        """A copy of all weights; the slot has no influence, as nothing holds an old copy."""
        copy = deepcopy(self.lm)
        vars(copy).pop("forward", None)  # a trainer's own, which would run the model that is trained
        return frozen(copy)

    def add_tokens(self, tokens: Sequence[int], rows: Tensor) -> None:
        """Adds rows to both tables where they are too short."""
        add_rows(self.lm, tokens, rows)

    def save(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Writes the model, with `weights` by name where they are not in it, and its tokenizer."""
        save_model(self.lm, self.tokenizer, folder, weights)


class AdapterModel:
    """An adapter is trained, the backbone is frozen; the reference policy is on the same backbone.

    Where training starts from an adapter, the reference is a second, frozen copy of that adapter; where it starts from
    a whole model, the reference is that model with adapters switched off.
    """

    def __init__(self, folder: Path, params: ModelParams, seed: int, device: torch.device) -> None:
        self.tokenizer = load_tokenizer(str(folder))
        self.storage = storage_of(params)
        self.start = folder if is_adapter(folder) else None
        self.backbone = Backbone(base_of(folder) if self.start else folder, params, device)
        self.lm = self.backbone.lm
        if self.start:
            self.backbone.attach(folder, POLICY, trainable=True)
        else:
            self.backbone.model = new_adapter(self.lm, params.lora, seed)

    @property
    def model(self) -> "PeftModel":
        """The backbone with its adapters, as peft's class."""
        return self.backbone.model

    def ref_policy(self) -> RefPolicy:
        """The starting weights on the same backbone."""
        if self.start is None:
            return partial(self.backbone.using, None)
        self.backbone.attach(self.start, REFERENCE)
        return partial(self.backbone.using, REFERENCE)

    def snapshot(self, slot: str) -> RefPolicy:
        """A copy of the adapter on the same backbone."""
        copy_policy(self.model, slot)
        return partial(self._still, slot)

    @contextmanager
    def _still(self, name: str) -> Iterator[PreTrainedModel]:
        """The language model with the adapter `name`, in eval mode; afterwards as it was before."""
        with self.backbone.using(name) as lm:
            training = lm.training
            lm.eval()
            try:
                yield lm
            finally:
                lm.train(training)

    def add_tokens(self, tokens: Sequence[int], rows: Tensor) -> None:
        """Makes the embeddings a part of the adapter; the backbone's logits stay as they are."""
        train_tokens(self.model, tokens, rows)

    def save(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Writes the adapter and the tokenizer; its weights are always in the model."""
        save_adapter(self.model, self.tokenizer, folder, self.storage)


def load_trainable(folder: Path, params: ModelParams, seed: int, device: torch.device) -> Trainable:
    """The model in `folder`, to be trained whole or by an adapter, depending on `model.adapter`.

    Args:
        folder: a whole model or, with `model.adapter` lora, an adapter to continue.
        params: section `model`.
        seed: of a new adapter's initial weights.
        device: where the model is placed.
    """
    return WholeModel(folder, device) if params.adapter == "none" else AdapterModel(folder, params, seed, device)


class ModelFolders:
    """Opens models for measuring; adapters of one base, and that base, share one backbone."""

    def __init__(self, params: ModelParams, device: torch.device) -> None:
        self.params = params
        self.device = device
        self._backbone: Backbone | None = None
        self._opened = 0

    def open(self, folder: Path) -> RefPolicy:
        """Opens the model in `folder`, a whole one or, with `model.adapter` lora, an adapter."""
        if self.params.adapter == "none":
            return frozen(load_causal_lm(str(folder))[0].to(self.device))
        backbone = self._backbone_of(base_of(folder) if is_adapter(folder) else folder)
        if not is_adapter(folder):
            return partial(backbone.using, None)
        self._opened += 1
        name = f"opened_{self._opened}"
        backbone.attach(folder, name)
        return partial(backbone.using, name)

    def _backbone_of(self, base: Path) -> Backbone:
        if self._backbone is None or not self._backbone.folder.samefile(base):
            self._backbone = None  # frees the old one before the new one is loaded
            self._backbone = Backbone(base, self.params, self.device)
        return self._backbone
