"""`rarlhf merge`: the merged model is the adapter's, plain transformers loads it, and bad input is refused."""

import json
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from shutil import copytree, rmtree

import bitsandbytes
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    PreTrainedTokenizerBase,
)

import rarlhf.commands.merge
from rarlhf.commands.main import main
from rarlhf.commands.merge import merge_adapter, whole
from rarlhf.config.errors import UserError
from rarlhf.config.params import ModelParams, Params
from rarlhf.decoding.sampling import Decoding
from rarlhf.models.backbone import AdapterModel
from rarlhf.models.loading import load_causal_lm, save_model

CPU = torch.device("cpu")
MODES = {
    "none": {},
    "int8": {"quantization": "int8", "int8_threshold": 6.0},
    "int8-weights": {"quantization": "int8", "int8_threshold": 1e-9},
}
TOLERANCE = {"none": 1e-5, "int8": 0.1, "int8-weights": 1e-4}  # nats per token


def section(params: Params, mode: str) -> ModelParams:
    lora = params.model.lora.model_copy(update={"r": 4})
    return params.model.model_copy(update={"adapter": "lora", "lora": lora} | MODES[mode])


@pytest.fixture(params=["gpt2", "gptj"])
def workspace(
    request: pytest.FixtureRequest,
    tokenizer: PreTrainedTokenizerBase,
    params: Params,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A current folder with `models/base`, and `models/MODE`, adapters of random weights on it."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(5)
    end = {"bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.15}
    shape = {"vocab_size": len(tokenizer), "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2}
    make = {
        "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**shape, **end)),
        "gptj": lambda: GPTJForCausalLM(GPTJConfig(**shape, **end, rotary_dim=4, tie_word_embeddings=False)),
    }
    lm = make[request.param]()
    with torch.no_grad():
        for block in lm.transformer.h:
            block.ln_1.weight[:2] *= 4  # activations above LLM.int8's threshold
    save_model(lm, tokenizer, Path("models/base"))
    for mode in MODES:
        start = AdapterModel(Path("models/base"), section(params, mode), 1, CPU)
        with torch.no_grad():
            for name, value in start.lm.named_parameters():
                if "lora_B" in name:
                    value.normal_(std=0.2)
        start.save(Path("models", mode))
    return tmp_path


@torch.no_grad()
def logprobs(lm: torch.nn.Module) -> torch.Tensor:
    tokens = torch.randint(1, 250, (6, 20), generator=torch.Generator().manual_seed(0))
    return lm(tokens).logits.log_softmax(dim=-1)[:, :-1].gather(-1, tokens[:, 1:].unsqueeze(-1))


@pytest.mark.parametrize("mode", MODES)
def test_the_merged_model_is_the_adapters(mode: str, workspace: Path, params: Params) -> None:
    difference = merge_adapter(Path("models", mode), Path("out/merged"))
    merged = AutoModelForCausalLM.from_pretrained("out/merged", dtype="auto")
    assert {value.dtype for value in merged.parameters()} == {torch.float32}
    assert not any("lora" in name for name, _ in merged.named_parameters())
    assert type(merged) is type(load_causal_lm("models/base")[0])
    assert AutoTokenizer.from_pretrained("out/merged").get_vocab()
    trained = AdapterModel(Path("models", mode), section(params, mode), 1, CPU)
    off = (logprobs(merged) - logprobs(trained.lm)).abs()
    assert off.max() <= TOLERANCE[mode]
    assert 0 <= difference.mean <= difference.largest <= TOLERANCE[mode]
    assert (logprobs(merged) - logprobs(load_causal_lm("models/base")[0])).abs().max() > 0.1  # not the bare base
    if mode == "int8":
        assert difference.largest > 1e-4  # what is said is measured, and activations are rounded
    assert [path.name for path in Path("out").iterdir()] == ["merged"]


def test_an_8_bit_adapter_is_merged_with_the_weights_it_was_trained_on(workspace: Path, params: Params) -> None:
    """Negative control: with the weights before they were rounded the merged model is farther away."""
    merge_adapter(Path("models/int8-weights"), Path("rounded"))
    (Path("models/int8-weights") / "backbone.json").unlink()
    unknown = merge_adapter(Path("models/int8-weights"), Path("unrounded"))
    assert unknown.quantization is None
    assert "what it was trained on is not noted" in unknown.text()
    trained = logprobs(AdapterModel(Path("models/int8-weights"), section(params, "int8-weights"), 1, CPU).lm)
    near, far = (
        float((logprobs(AutoModelForCausalLM.from_pretrained(name)) - trained).abs().max())
        for name in ("rounded", "unrounded")
    )
    assert near < 1e-4
    assert far > 1e-3


@pytest.mark.parametrize(("mode", "quantised"), [("none", False), ("int8", True)])
def test_the_texts_of_the_check_are_sampled_from_what_was_trained(
    mode: str, quantised: bool, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample, asked = rarlhf.commands.merge.sample_responses, []

    def noted(decoding: Decoding, *rest: object) -> object:
        lm = decoding.lm
        adapted = any("lora_B" in name for name, _ in lm.named_parameters())
        asked.append((adapted, any(isinstance(module, bitsandbytes.nn.Linear8bitLt) for module in lm.modules())))
        return sample(decoding, *rest)

    monkeypatch.setattr(rarlhf.commands.merge, "sample_responses", noted)
    merge_adapter(Path("models", mode), Path("out"))
    assert asked == [(True, quantised)]


def test_the_command_says_what_was_measured(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", "models/int8", "merged"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("merged: models/int8 with its base, in float32. Log-probabilities of 256 sampled tokens ")
    assert "differ from those of the adapter on the 8-bit backbone that it was trained on by 0.0" in printed
    assert printed.count("\n") == 1


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["merge", *arguments]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_bad_input_is_refused_in_one_line(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("taken").mkdir()
    Path("taken/file").write_text("mine")
    assert refusal(capsys, "models/none", "taken") == "error: taken is not empty; name a folder that is not there yet\n"
    assert refusal(capsys, "models/none", "taken/file") == (
        "error: taken/file is a file; name a folder that is not there yet\n"
    )
    assert Path("taken/file").read_text() == "mine"
    for folder in ("models/base", "nowhere"):
        assert f"error: {folder} is not a folder of an adapter: it must hold" in refusal(capsys, folder, "out")
    line = refusal(capsys, "models/none", "out", "--base", "nowhere")
    assert line == "error: nowhere is not a folder of a base model: it has no config.json\n"
    copytree("models/base", "elsewhere")
    rmtree("models/base")
    line = refusal(capsys, "models/none", "out")
    assert "error: models/none is an adapter of the base model 'models/base', which is not there" in line
    assert not Path("out").exists()
    assert main(["merge", "models/none", "out", "--base", "elsewhere"]) == 0
    assert Path("out/model.safetensors").is_file()


def test_another_models_adapter_is_refused(
    workspace: Path, tokenizer: PreTrainedTokenizerBase, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = {"vocab_size": len(tokenizer), "n_positions": 64, "n_embd": 24, "n_layer": 1, "n_head": 2}
    save_model(GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0)), tokenizer, Path("other"))
    assert "the adapter in models/none does not fit the base model other" in refusal(
        capsys, "models/none", "out", "--base", "other"
    )


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(value: float, workspace: Path, params: Params) -> None:
    start = AdapterModel(Path("models/none"), section(params, "none"), 1, CPU)
    with torch.no_grad():
        next(weight for name, weight in start.lm.named_parameters() if "lora_B" in name).fill_(value)
    start.save(Path("models/broken"))
    with pytest.raises(UserError, match="adapter in models/broken does not fit .* models/base .not finite: .*lora_B"):
        merge_adapter(Path("models/broken"), Path("out"))
    assert not Path("out").exists()


def test_half_an_output_never_looks_whole(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(model: object, tokenizer: object, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(rarlhf.commands.merge, "save_model", killed)
        merge_adapter(Path("models/none"), Path("out"))
    assert sorted(path.name for path in workspace.iterdir()) == ["models"]
    left = Path(".out.partial")  # of a run that had no time to tidy up
    left.mkdir()
    (left / "rest").write_text("")
    Path("out").mkdir()  # an empty one may be there
    merge_adapter(Path("models/none"), Path("out"))
    assert not (Path("out") / "rest").exists()
    assert json.loads(Path("out/config.json").read_text())["model_type"] in ("gpt2", "gptj")
    assert sorted(path.name for path in workspace.iterdir()) == ["models", "out"]


def test_the_folder_that_was_written_is_itself_put_in_place(tmp_path: Path) -> None:
    """A copy of it would be there with half its files for a time."""
    out = tmp_path / "out"
    out.mkdir()
    with whole(out) as folder:
        (folder / "file").write_text("")
        written = folder.stat().st_ino
    assert out.stat().st_ino == written
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_command_line_without_a_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_help_imports_no_heavy_library() -> None:
    code = "import sys; from rarlhf.commands.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "merge" in done.stdout


def test_the_package_names_the_command() -> None:
    pyproject = Path(__file__).parents[3].joinpath("pyproject.toml").read_text(encoding="utf-8")
    assert '[project.scripts]\nrarlhf = "rarlhf.commands.main:main"\n' in pyproject
    assert all(
        entry.value == "rarlhf.commands.main:main" for entry in entry_points(group="console_scripts", name="rarlhf")
    )
