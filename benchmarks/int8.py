"""What rounding to 8 bits does to log-probabilities: the table of docs/lora.md, on random models, on a CPU.

    python -m benchmarks.int8           # differences
    python -m benchmarks.int8 --cost    # seconds and memory of one block of GPT-J's shape, which takes minutes

Three differences, in nats per token but for the ratio: `decoding`, between the cached pass that a token was drawn in
and the full pass over the same tokens; `ratio`, of one response's probabilities in two batches of other companions,
minus 1, which is the first ratio of a PPO update; `weights`, between the 8-bit and the float32 model.
"""

import logging
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, GPTJConfig, GPTJForCausalLM, PreTrainedModel

from benchmarks.worker import reset_peak, resident
from rarlhf.decoding.prompts import left_pad
from rarlhf.decoding.sampling import Decoding, sample_responses
from rarlhf.models.loading import Storage, load_backbone
from rarlhf.models.policy import Sampling, response_logprobs
from rarlhf.system.machine import quieten_libraries
from rarlhf.system.streams import generator

CPU = torch.device("cpu")
SHAPE = {"vocab_size": 300, "n_positions": 64, "n_embd": 128, "n_layer": 6, "n_head": 2}
END = {"bos_token_id": 0, "eos_token_id": 0}
SAMPLING = Sampling(1.0, 0, 12, 0)
ROWS, BATCH, SEEDS = 32, 8, (0, 1)
PASSES = {  # of `cost`: texts, tokens; with a backward pass or without
    "one token of 8": ((8, 1), False),
    "2 x 112": ((2, 112), False),
    "2 x 112, both ways": ((2, 112), True),
}
ROUNDS = 3
QUERIES = [[5 + i] * (1 + i % 7) for i in range(ROWS)]


def random_model(kind: str, std: float, seed: int) -> PreTrainedModel:
    """A model of random weights in which some activations are above LLM.int8's threshold of 6."""
    torch.manual_seed(seed)
    if kind == "GPT-2":
        lm: PreTrainedModel = GPT2LMHeadModel(GPT2Config(**SHAPE, **END, initializer_range=std))
    else:
        config = GPTJConfig(**SHAPE, **END, initializer_range=std, rotary_dim=8, tie_word_embeddings=False)
        lm = GPTJForCausalLM(config)
    with torch.no_grad():
        for block in lm.transformer.h:
            block.ln_1.weight[:3] *= 4
    return lm


@torch.no_grad()
def differences(rounded: PreTrainedModel, exact: PreTrainedModel, seed: int) -> Iterator[Tensor]:
    """(tokens,) each: decoding, ratio, weights."""
    seen: list[Tensor] = []
    head = rounded.get_output_embeddings()
    hook = head.register_forward_hook(lambda module, inputs, output: seen.append(output[:, -1]))
    uniforms = torch.rand(ROWS, SAMPLING.max_new_tokens, generator=generator("int8", seed))
    episodes = sample_responses(Decoding(rounded, SAMPLING), left_pad(QUERIES, 0, CPU), uniforms)
    hook.remove()
    drawn = torch.stack(seen, dim=1).log_softmax(dim=-1).gather(-1, episodes.responses.unsqueeze(-1)).squeeze(-1)
    full = response_logprobs(rounded, episodes, SAMPLING)
    apart = torch.empty_like(full)
    for rows in torch.randperm(ROWS, generator=generator("rows", seed)).split(BATCH):
        apart[rows] = response_logprobs(rounded, episodes.rows(rows), SAMPLING)
    weights = response_logprobs(exact, episodes, SAMPLING) - full
    for difference in (drawn - full, (apart - full).exp() - 1, weights):
        yield difference[episodes.response_mask].abs()


def main() -> None:
    """Prints the table."""
    quieten_libraries()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    print("| model, standard deviation of weights, threshold | decoding | ratio | weights |")
    print("| --- | --- | --- | --- |")
    for kind in ("GPT-2", "GPT-J"):
        for std in (0.02, 0.1, 0.3):
            for threshold in (6.0, 1e-9):
                print(_row(kind, std, threshold), flush=True)


def cost() -> None:
    """Prints the table: medians of the ways in turn, in seconds of one core; memory above what the models hold."""
    quieten_libraries()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    ways = {
        "bfloat16": Storage("bfloat16", "none", 6.0),
        "int8, 6": Storage("bfloat16", "int8", 6.0),
        "int8, 1e-9": Storage("bfloat16", "int8", 1e-9),
    }
    with TemporaryDirectory() as folder:
        gptj_block().save_pretrained(Path(folder))
        models = {name: load_backbone(folder, storage, CPU).requires_grad_(False) for name, storage in ways.items()}
    print("| held as, threshold | " + " | ".join(f"{name}, s | MiB" for name in PASSES) + " |", flush=True)
    print("| --- |" + " ---: | ---: |" * len(PASSES))
    measured = [_medians(models, shape, train) for shape, train in PASSES.values()]
    for name in ways:
        cells = " | ".join(f"{seconds:.2f} | {memory:.0f}" for seconds, memory in (found[name] for found in measured))
        print(f"| {name} | {cells} |", flush=True)


def gptj_block() -> PreTrainedModel:
    """One block of GPT-J 6B's shape and a small vocabulary, random, with some activations above 6."""
    torch.manual_seed(0)
    shape = {"n_embd": 4096, "n_layer": 1, "n_head": 16, "rotary_dim": 64, "n_positions": 128, "vocab_size": 300}
    lm = GPTJForCausalLM(GPTJConfig(**shape, **END, tie_word_embeddings=False)).bfloat16()
    with torch.no_grad():
        lm.transformer.h[0].ln_1.weight[:3] *= 4
    return lm


def _medians(models: dict[str, PreTrainedModel], shape: tuple[int, int], train: bool) -> dict[str, tuple[float, float]]:
    """Median seconds of a core for a pass of each model over (texts, tokens), and the most MiB that one took."""
    tokens = torch.randint(1, 300, shape, generator=generator("tokens"))
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in models}
    for turn in range(ROUNDS + 1):
        for name, lm in models.items():
            reset_peak()
            before, start = resident("VmRSS"), time.process_time()
            with torch.set_grad_enabled(train):
                states = lm.transformer.wte(tokens).requires_grad_(train)
                output = lm.base_model(inputs_embeds=states, use_cache=False).last_hidden_state
                if train:
                    output.sum().backward()
            if turn:
                found[name].append((time.process_time() - start, (resident("VmHWM") - before) / 2**20))
    return {
        name: (statistics.median(seconds for seconds, _ in taken), max(memory for _, memory in taken))
        for name, taken in found.items()
    }


def _row(kind: str, std: float, threshold: float) -> str:
    found: list[list[Tensor]] = [[], [], []]
    for seed in SEEDS:
        with TemporaryDirectory() as folder:
            random_model(kind, std, seed).save_pretrained(Path(folder))
            rounded, exact = (
                load_backbone(folder, Storage("float32", quantization, threshold), CPU)
                for quantization in ("int8", "none")
            )
        for values, difference in zip(found, differences(rounded, exact, seed), strict=True):
            values.append(difference)
    cells = [torch.cat(values) for values in found]
    text = " | ".join(f"{float(values.max()):.1e} (mean {float(values.mean()):.1e})" for values in cells)
    return f"| {kind}, {std}, {threshold:g} | {text} |"


if __name__ == "__main__":
    cost() if "--cost" in sys.argv[1:] else main()
