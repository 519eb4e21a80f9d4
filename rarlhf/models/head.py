"""A head R(prefix, token) in (0, 1) on a frozen language model: a small causal transformer on what that model reads.

It is a GPT-2 of transformers that gets `head_inputs` in place of its own embeddings: the model's last hidden states,
which tell what may follow, and its embeddings of the tokens, which tell what was said. Its logits, one for each
token of the vocabulary, are those of R. Its output matrix is tied to its table of embeddings, which nothing else reads,
so that a folder holds the matrix once and `GPT2LMHeadModel.from_pretrained` loads it. Source: NADO (Meng et al. 2022,
arXiv 2205.14219), whose heads are of this kind.

Letters for shapes: B episodes, S tokens of query and response, H hidden size of the language model, V vocabulary.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import layer_norm
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from rarlhf.config.baselines import HeadParams
from rarlhf.config.errors import UserError
from rarlhf.models.loading import load_network
from rarlhf.models.policy import logits_of, logits_size
from rarlhf.system.streams import seed_globals

FIRST_LOGIT = 0.16  # standard deviation of the logits of a new head


def new_head(lm: PreTrainedModel, params: HeadParams, length: int, seed: int) -> GPT2LMHeadModel:
    """A head on a language model with weights drawn from the seed, without dropout, on the CPU.

    Args:
        lm: the language model, for its hidden size and vocabulary.
        params: section `head`.
        length: most tokens of query and response together.
        seed: of the initial weights.
    Raises: UserError if `head.heads` does not divide the hidden size, or embeddings are of another size.
    """
    width = states_size(lm)
    heads = params.heads if params.layers else 1
    if width % heads:
        raise UserError(f"head.heads = {heads}: it must divide the model's hidden size, which is {width}")
    embedded = lm.get_input_embeddings().weight.shape[1]
    if embedded != width:
        raise UserError(f"a head reads embeddings and states, and the model's have {embedded} and {width} numbers")
    seed_globals("head", seed)
    config = GPT2Config(
        vocab_size=logits_size(lm),
        n_positions=length,
        n_embd=width,
        n_layer=params.layers,
        n_head=heads,
        activation_function="gelu_pytorch_tanh",
        initializer_range=params.init_std,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    head = GPT2LMHeadModel(config)
    with torch.no_grad():  # so small that R starts near 1/2 for every token, whatever the width
        head.get_output_embeddings().weight.mul_(FIRST_LOGIT / (params.init_std * width**0.5))
    return head


def load_head(folder: Path, lm: PreTrainedModel) -> PreTrainedModel:
    """The head in a folder, frozen, on the device of the language model that it stands on.

    Raises: UserError if there is none, it is not whole, or it is of another model.
    """
    head = load_network(folder, "methods.heads").requires_grad_(False)
    of_head, of_model = (states_size(head), logits_size(head)), (states_size(lm), logits_size(lm))
    if of_head != of_model:
        sizes = ("{} states and {} tokens".format(*pair) for pair in (of_head, of_model))
        raise UserError(
            f"the head in {folder} is of a model with {' and the SFT model has '.join(sizes)}; train it again"
        )
    return head.to(lm.device)


def states_size(lm: PreTrainedModel) -> int:
    """H, the size of the hidden states that the model's output matrix reads."""
    return int(lm.get_output_embeddings().weight.shape[-1])


def head_inputs(lm: PreTrainedModel, states: Tensor, tokens: Tensor) -> Tensor:
    """(B, S, H) float32 what a head reads at each token: hidden state and embedding, each of mean 0 and variance 1.

    The last hidden state serves to predict the next token, and may have lost what the tokens so far said.

    Args:
        lm: the language model.
        states: (B, S, H) its last hidden states, of any precision.
        tokens: (B, S) that it has read.
    """
    embedded = lm.get_input_embeddings()(tokens).float()
    return layer_norm(states.float(), states.shape[-1:]) + layer_norm(embedded, embedded.shape[-1:])


def head_logits(head: PreTrainedModel, inputs: Tensor, first: int = 0, **options: Any) -> Tensor:
    """(B, S - first, V) float32 logits of R(tokens up to this one, v) for every next token v.

    Args:
        head: in any mode; it has no dropout.
        inputs: (B, S, H) float32, as `head_inputs` has them.
        first: column from which on logits are wanted.
        options: mask, positions and cache, as transformers' GPT2Model takes them.
    """
    return logits_of(head, head_states(head, inputs, **options)[:, first:])


def head_states(head: PreTrainedModel, inputs: Tensor, **options: Any) -> Tensor:
    """(B, S, H) hidden states of the head, from which its logits are computed; arguments as in `head_logits`."""
    output = head.base_model(inputs_embeds=inputs, **{"use_cache": False, **options})
    return output.last_hidden_state
