"""Seconds per iteration and peak memory of PPO at the paper's model shapes, with random weights.

    python -m benchmarks.gptj                    # on a GPU; writes benchmarks/results/gptj.json
    python -m benchmarks.gptj --small            # the same path with tiny shapes, on any CPU
    python -m benchmarks.gptj --cases gptj-int8 --micro-batch 16

Random weights take the time and memory of trained ones: every response has its full length. The score is a count of
letters, so the reward model is in none of the numbers. A case runs in a process of its own, as peak memory is the
process's.
"""

import argparse
import importlib.metadata
import json
import logging
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rarlhf.config.params import Params
    from rarlhf.models.backbone import Trainable
    from rarlhf.rl.ppo import PPOTrainer
    from rarlhf.system.machine import Machine

RESULTS = Path("benchmarks/results/gptj.json")
PRESET = Path(__file__).parents[1] / "presets" / "tiny.yaml"  # what a case does not say
GIB = 1024**3
GPTJ = {"n_positions": 2048, "n_embd": 4096, "n_layer": 28, "n_head": 16, "rotary_dim": 64, "vocab_size": 50400}
GPT2 = {"n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257}
IMDB = {"batch": 128, "query": 64, "response": 48, "epochs": 4}  # IMDB-Gen of the authors' code
LORA = {"adapter": "lora", "dtype": "bfloat16"}
# name: architecture, its shape, keys of section `model`, episodes per forward and backward pass
CASES: dict[str, tuple[str, dict[str, int], dict[str, Any], int]] = {
    "gpt2": ("gpt2", GPT2, {}, 128),
    "gptj-lora": ("gptj", GPTJ, LORA | {"gradient_checkpointing": True}, 16),
    "gptj-int8": ("gptj", GPTJ, LORA | {"quantization": "int8", "gradient_checkpointing": True}, 16),
    "gptj-int8-weights": (
        "gptj",
        GPTJ,
        LORA | {"quantization": "int8", "int8_threshold": 1e-9, "gradient_checkpointing": True},
        16,
    ),
}
SMALL_SHAPE = {"n_positions": 64, "n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "vocab_size": 500}
SMALL_WORK = {"batch": 8, "query": 8, "response": 8, "epochs": 2}


def make_model(architecture: str, shape: Mapping[str, int], dtype: str, folder: Path) -> None:
    """Writes a model of random weights and a tokenizer of as many words to `folder`."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(shape["vocab_size"])}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0", pad_token="w0").save_pretrained(folder)
    config = AutoConfig.for_model(architecture, **shape, bos_token_id=0, eos_token_id=0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).save_pretrained(folder)


def case_params(
    name: str, small: bool, micro_batch: int | None, iterations: int, decode: str
) -> "tuple[Params, dict[str, int]]":
    """Parameters of a case, those it does not name from a preset, and its sizes."""
    from rarlhf.config.load import load_params

    _, _, model_keys, micro = CASES[name]
    work, micro = (SMALL_WORK, 4) if small else (IMDB, micro)
    sizes = work | {"micro_batch": micro if micro_batch is None else micro_batch}
    ppo = {
        "iterations": iterations + 1,
        "batch_size": sizes["batch"],
        "mini_batch_size": sizes["batch"],
        "micro_batch_size": sizes["micro_batch"] or "auto",
        "epochs": sizes["epochs"],
        "max_new_tokens": sizes["response"],
        "min_new_tokens": sizes["response"],
        "lr": 1.41e-5,
    }
    preset = load_params(PRESET)
    updates = {
        "risk": preset.risk_of("rlhf"),
        "model": preset.model.model_copy(update=model_keys),
        "ppo": preset.ppo.model_copy(update=ppo),
        "runtime": preset.runtime.model_copy(update={"device": "auto", "precision": "auto", "decode": decode}),
    }
    return preset.model_copy(update=updates), sizes


class Times:
    """A recorder that keeps the seconds of each phase."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def record(self, step: int, values: Mapping[str, float]) -> None:
        """Keeps the seconds."""
        self.rows.append({key: value for key, value in values.items() if key.startswith("time/")})

    def say(self, text: str) -> None:
        """Drops the line."""


def measure(name: str, small: bool, micro_batch: int | None, iterations: int, decode: str) -> dict[str, Any]:
    """Trains one case for some iterations after one that is not counted; returns its numbers."""
    import torch

    from rarlhf.models.backbone import load_trainable
    from rarlhf.system.machine import prepare, quieten_libraries

    quieten_libraries()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    params, sizes = case_params(name, small, micro_batch, iterations, decode)
    machine = prepare(params.runtime)
    architecture, shape, model_keys, _ = CASES[name]
    with TemporaryDirectory() as folder:
        shape = {key: SMALL_SHAPE[key] for key in shape} if small else shape
        make_model(architecture, shape, params.model.dtype, Path(folder))
        _forget_peak()
        start = time.perf_counter()
        trained = load_trainable(Path(folder), params.model, 1, machine.device)
        loading = time.perf_counter() - start
    times = Times()
    trainer = new_trainer(trained, params, sizes["query"], machine, times)
    seconds = iterate(trainer, sizes, iterations)
    counts = [value.numel() for value in trainer.policy.parameters()]
    learned = [value.numel() for value in trainer.policy.parameters() if value.requires_grad]
    return {
        "case": name + (" (small)" if small else ""),
        "device": torch.cuda.get_device_name() if machine.device.type == "cuda" else "CPU",
        "precision": str(machine.dtype).removeprefix("torch."),
        "model": model_keys,
        "sizes": sizes | {"micro_batch": trainer.ppo.micro_batch},
        "decode": decode,
        "parameters": sum(counts),
        "trained": sum(learned),
        "seconds_loading": loading,
        "seconds_per_iteration": median(seconds),
        "seconds_of_phases": {key: median(row[key] for row in times.rows[1:]) for key in times.rows[0]},
        "iterations_measured": iterations,
        "peak_gib": _peak_bytes() / GIB,
        "versions": {lib: importlib.metadata.version(lib) for lib in ("torch", "transformers", "peft", "bitsandbytes")},
    }


def new_trainer(
    trained: "Trainable", params: "Params", query_tokens: int, machine: "Machine", times: Times
) -> "PPOTrainer":
    """A trainer whose score counts letters."""
    import torch

    from rarlhf.models.policy import Policy, sampling_of
    from rarlhf.models.recompute import recompute_blocks
    from rarlhf.rl.memory import with_micro_batch
    from rarlhf.rl.parts import Models, Recipe, Session
    from rarlhf.rl.ppo import PPOTrainer

    def letters(texts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([float(text.count("1")) for text in texts])

    ref_policy = trained.ref_policy()
    if params.model.gradient_checkpointing:
        recompute_blocks(trained.lm)
    policy = Policy(trained.lm, sampling_of(params, trained.tokenizer.eos_token_id))
    session = Session(machine, times)
    ppo = with_micro_batch(params.ppo, policy, query_tokens, session)
    models = Models(policy, ref_policy, trained.tokenizer, letters)
    return PPOTrainer(models, Recipe(ppo, params.kl, params.risk, seed=1), session)


def iterate(trainer: "PPOTrainer", sizes: Mapping[str, int], iterations: int) -> list[float]:
    """Seconds of each iteration but the first."""
    import torch

    shape, draws = (sizes["batch"], sizes["query"]), torch.Generator().manual_seed(1)
    queries = torch.randint(1, trainer.policy.lm.config.vocab_size, shape, generator=draws).tolist()
    seconds = []
    for iteration in range(1, iterations + 2):
        start = time.perf_counter()
        trainer.step(trainer.collect_rollout(queries, iteration), iteration)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def _forget_peak() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak_bytes() -> float:
    """Most GPU memory that was reserved, or without a GPU the process's largest resident size."""
    import torch

    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_reserved())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def main() -> None:
    """Runs the cases one after another and writes the results."""
    parser = argparse.ArgumentParser(description="Seconds and peak memory of PPO at the paper's model shapes.")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--small", action="store_true", help="tiny shapes, for a CPU; writes nothing")
    parser.add_argument(
        "--micro-batch",
        type=int,
        help="episodes per forward and backward pass, 0 for as many as fit; default: the case's",
    )
    parser.add_argument("--decode", choices=("eager", "compiled"), default="eager", help="how tokens are decoded")
    parser.add_argument("--iterations", type=int, default=3, help="iterations that are measured, after one that is not")
    parser.add_argument("--one", action="store_true", help="the only case, in this process: prints JSON and ends")
    options = parser.parse_args()
    if options.one:
        arguments = (options.cases[0], options.small, options.micro_batch, options.iterations, options.decode)
        print(json.dumps(measure(*arguments)))
        return
    rows = [_in_a_process(case, sys.argv[1:]) for case in options.cases]
    for row in rows:
        text = f"{row['seconds_per_iteration']:.3g} s per iteration, peak {row['peak_gib']:.2f} GiB"
        print(f"{row['case']} on {row['device']}: {text}")
    if not options.small:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def _in_a_process(case: str, arguments: Sequence[str]) -> dict[str, Any]:
    """One case in a process of its own; the last `--cases` counts."""
    command = [sys.executable, "-m", "benchmarks.gptj", *arguments, "--cases", case, "--one"]
    environment = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "HF_HUB_OFFLINE": "1"} | dict(os.environ)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return dict(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    main()
