"""Models and data sets of the hub, from a local cache of its shape: what is taken over, and what is refused."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx2
import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rarlhf.commands.main import main
from rarlhf.config.errors import UserError, may_pass
from rarlhf.config.judging import RewardParams
from rarlhf.config.params import DataParams, ModelParams, Params
from rarlhf.data.hub import hub_records
from rarlhf.data.sources import load_raw_rows
from rarlhf.messages.progress import SilentRecorder
from rarlhf.models.hub import UnreachableError, fetch_model
from rarlhf.models.loading import load_causal_lm, load_tokenizer
from rarlhf.system.machine import Machine
from rarlhf.training.base import make_base_model
from rarlhf.training.reward import make_scorer
from tests.hubs import (
    COMMIT,
    END,
    Cache,
    gpt2_tokenizer,
    write_distilbert,
    write_gpt2,
    write_gptj,
    write_imdb,
    write_real_toxicity_prompts,
    write_toxic_bert,
)

TEXTS = [f"we saw the old film number {index} , and liked it ." for index in range(30)]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    return Cache(tmp_path / "home", monkeypatch)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory, params: Params) -> Path:
    """A folder with one model of each kind."""
    folder, tokenizer = tmp_path_factory.mktemp("models"), gpt2_tokenizer()
    write_gpt2(folder / "gpt2", tokenizer)
    write_gptj(folder / "gptj", tokenizer)
    small = params.reward.model_copy(
        update={"scratch": params.reward.scratch.model_copy(update={"vocab_size": 60}), "max_length": 512}
    )
    write_distilbert(folder / "distilbert", small, TEXTS)
    write_toxic_bert(folder / "bert", small, TEXTS)
    return folder


@pytest.fixture
def make_base(params: Params, machine: Machine, tmp_path: Path) -> Callable[..., Path]:
    def make(source: str, **values: object) -> Path:
        section = params.model.model_copy(update={"source": source, **values})
        (tmp_path / "base").mkdir()
        make_base_model([], tmp_path / "base", section, machine, SilentRecorder())
        return tmp_path / "base"

    return make


def refusal(act: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        act()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_hub_model_is_linked_and_its_commit_is_recorded(
    cache: Cache, models: Path, make_base: Callable[..., Path]
) -> None:
    snapshot = cache.add("openai-community/gpt2", models / "gpt2")
    base = make_base("openai-community/gpt2")
    source = json.loads((base / "source.json").read_text())
    assert source == {"source": "hub", "name": "openai-community/gpt2", "commit": COMMIT}
    blob = (snapshot / "model.safetensors").resolve()
    assert os.path.samefile(base / "model.safetensors", blob)
    assert blob.stat().st_nlink == 2
    assert not [path for path in base.iterdir() if path.is_symlink()]
    model, tokenizer = load_causal_lm(str(base))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == END
    assert len(tokenizer) == END + 1
    there = AutoModelForCausalLM.from_pretrained(models / "gpt2")
    assert torch.equal(model.lm_head.weight, there.lm_head.weight)


def test_where_links_are_not_possible_files_are_copied(
    cache: Cache, models: Path, make_base: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = cache.add("a/b", models / "gpt2")

    def refuse(*names: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    base = make_base("a/b")
    weights = (base / "model.safetensors", snapshot / "model.safetensors")
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert not os.path.samefile(*weights)


def test_a_branch_or_pull_request_gives_its_commit(cache: Cache, models: Path, make_base: Callable[..., Path]) -> None:
    cache.add("a/b", models / "gpt2", commit="1" * 40, ref="refs/pr/3")
    cache.add("a/b", models / "gptj", commit="2" * 40)
    assert json.loads((make_base("a/b", revision="refs/pr/3") / "source.json").read_text())["commit"] == "1" * 40


def test_weights_that_are_stored_otherwise_are_written_anew(
    cache: Cache, models: Path, make_base: Callable[..., Path]
) -> None:
    snapshot = cache.add("EleutherAI/gpt-j-6b", models / "gptj")
    base = make_base("EleutherAI/gpt-j-6b", dtype="bfloat16", adapter="lora")
    assert (snapshot / "model.safetensors").resolve().stat().st_nlink == 1
    assert (base / "model.safetensors").stat().st_size < 0.6 * (snapshot / "model.safetensors").stat().st_size
    assert json.loads((base / "source.json").read_text())["commit"] == COMMIT
    model, tokenizer = load_causal_lm(str(base), torch.bfloat16)
    assert (model.lm_head.weight.shape[0], len(tokenizer)) == (50400, 50257)
    assert model.lm_head.weight.dtype == torch.bfloat16


def test_a_local_folder_is_copied_and_stays_the_users(models: Path, make_base: Callable[..., Path]) -> None:
    base = make_base(str(models / "gpt2"))
    assert not os.path.samefile(base / "model.safetensors", models / "gpt2" / "model.safetensors")
    assert not (base / "source.json").exists()


@pytest.mark.parametrize(("kind", "label"), [("distilbert", "POSITIVE"), ("bert", "toxic")])
def test_the_papers_classifiers(
    kind: str, label: str, cache: Cache, models: Path, params: Params, machine: Machine, tmp_path: Path
) -> None:
    cache.add("a/classifier", models / kind)

    def make(name: str) -> Path:
        values: dict[str, object] = {"source": "a/classifier", "label": name, "revision": COMMIT}
        section: RewardParams = params.reward.model_copy(update=values)
        (tmp_path / "reward").mkdir(exist_ok=True)
        make_scorer([], tmp_path / "reward", section, machine, SilentRecorder())
        return tmp_path / "reward"

    known = "0: NEGATIVE, 1: POSITIVE" if kind == "distilbert" else "0: toxic, 1: severe_toxic"
    assert f"reward.label = 'TOXIC': the reward model has no such output; it has {known}" in refusal(
        lambda: make("TOXIC")
    )
    made = make(label)
    assert json.loads((made / "source.json").read_text())["commit"] == COMMIT
    assert AutoModelForSequenceClassification.from_pretrained(made).config.label2id[label] == int(kind != "bert")


# --- what can be wrong with the wish


def answer(status: int, kind: type[errors.HfHubHTTPError]) -> errors.HfHubHTTPError:
    request = httpx2.Request("GET", "https://huggingface.co/api/models/a/b")
    return kind("what the hub says\nin two lines", response=httpx2.Response(status, request=request))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (answer(404, errors.RepositoryNotFoundError), "not there on the hub, or private: check the name on https://"),
        (
            answer(403, errors.GatedRepoError),
            "gated on the hub: ask for access on https://huggingface.co/a/b, then `hf",
        ),
        (
            answer(404, errors.RevisionNotFoundError),
            "has no revision 'v1': set model.revision to a commit or branch of",
        ),
        (httpx2.ConnectError("no route\nto host"), "neither a local folder nor to be had from the hub, which cannot"),
    ],
    ids=["missing", "gated", "revision", "network"],
)
def test_what_the_hub_refuses_is_one_line(
    error: Exception, expected: str, params: Params, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    section: ModelParams = params.model.model_copy(update={"source": "a/b", "revision": "v1"})
    message = refusal(lambda: make_base_model([], tmp_path, section, machine, SilentRecorder()))
    assert message.startswith(f"model.source = 'a/b': {expected}")


@pytest.mark.parametrize("offline", [True, False])
def test_a_hub_that_does_not_answer_may_later(offline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> str:
        raise httpx2.ConnectError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    with pytest.raises(UnreachableError) as caught:
        fetch_model("a/b", None, "model.source")
    assert may_pass(caught.value) is not offline


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("key", ["model.source", "reward.source"])
def test_a_hub_name_without_network_is_one_line_with_the_mend(key: str) -> None:
    message = refusal(lambda: fetch_model("nobody/no-such-model", "abc", key))
    assert message.startswith(f"{key} = 'nobody/no-such-model': neither a local folder nor to be had from the hub")
    assert "`hf download nobody/no-such-model --revision abc`" in message
    assert f"give its folder as {key}" in message


@pytest.mark.usefixtures("cache")
def test_a_name_that_can_be_none_is_told_apart() -> None:
    message = refusal(lambda: fetch_model("models/my/model", None, "model.source"))
    assert message.startswith("model.source = 'models/my/model': neither a local folder nor a name that the hub can")


def test_a_cached_model_of_another_revision_is_not_taken(cache: Cache, models: Path) -> None:
    cache.add("a/b", models / "gpt2")
    assert "lacks revision 'v2'" in refusal(lambda: fetch_model("a/b", "v2", "model.source"))


# --- pickled weights


@pytest.fixture
def pickled(models: Path, tmp_path: Path) -> Path:
    """A classifier as older uploads are: pickled weights alone."""
    folder = tmp_path / "pickled"
    shutil.copytree(models / "distilbert", folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder


def test_pickled_weights_are_refused_and_converted_on_demand(
    pickled: Path, cache: Cache, models: Path, params: Params, machine: Machine, tmp_path: Path
) -> None:
    cache.add("lvwerra/distilbert-imdb", pickled)
    section = params.reward.model_copy(update={"source": "lvwerra/distilbert-imdb"})
    message = refusal(lambda: make_scorer([], tmp_path / "x", section, machine, SilentRecorder()))
    assert message.startswith(f"reward.source = 'lvwerra/distilbert-imdb': has no safetensors at {COMMIT[:10]}, and no")
    assert "`rarlhf convert lvwerra/distilbert-imdb FOLDER`" in message
    assert main(["convert", "lvwerra/distilbert-imdb", str(tmp_path / "safe")]) == 0
    converted = AutoModelForSequenceClassification.from_pretrained(tmp_path / "safe", use_safetensors=True)
    first = AutoModelForSequenceClassification.from_pretrained(models / "distilbert").state_dict()
    assert all(torch.equal(value, first[name]) for name, value in converted.state_dict().items())
    given = section.model_copy(update={"source": str(tmp_path / "safe")})
    make_scorer([], tmp_path / "reward", given, machine, SilentRecorder())


def test_shards_are_converted_with_an_index(pickled: Path, tmp_path: Path) -> None:
    weights = torch.load(pickled / "pytorch_model.bin", weights_only=True)
    (pickled / "pytorch_model.bin").unlink()
    names = sorted(weights)
    for number, part in enumerate((names[:5], names[5:]), start=1):
        file = pickled / f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: weights[name] for name in part}, file)
    assert main(["convert", str(pickled), str(tmp_path / "safe")]) == 0
    converted = AutoModelForSequenceClassification.from_pretrained(tmp_path / "safe").state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in converted.items())


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("ran",)


@pytest.mark.parametrize(
    ("content", "message"),
    [({"x": Evil()}, "is no plain file of weights, and is not read any further"), ({"x": 3}, "holds other things")],
    ids=["code", "number"],
)
def test_a_pickle_with_anything_else_is_refused(
    content: object, message: str, pickled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    torch.save(content, pickled / "pytorch_model.bin")
    assert main(["convert", str(pickled), str(tmp_path / "safe")]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "safe").exists()


def test_nothing_to_convert_is_said(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(models / "bert"), str(tmp_path / "safe")]) == 1
    assert "has nothing to convert: it has safetensors already" in capsys.readouterr().err


# --- data sets


@pytest.fixture
def imdb(cache: Cache, tmp_path: Path, params: Params) -> DataParams:
    write_imdb(tmp_path / "imdb", TEXTS)
    cache.add("stanfordnlp/imdb", tmp_path / "imdb", kind="dataset")
    values = {"source": "hub", "name": "stanfordnlp/imdb", "config": "plain_text", "revision": COMMIT}
    return params.data.model_copy(update=values | {"train_rows": None, "test_rows": None, "second_scorer_rows": 0})


def test_a_data_set_is_read_from_the_hubs_cache(imdb: DataParams) -> None:
    raw = load_raw_rows(imdb)
    assert [row.text for row in raw.train] == [f"train {text}" for text in TEXTS]
    assert [row.label for row in raw.test] == [0, 1] * 15
    assert raw.origin == {"source": "hub", "name": "stanfordnlp/imdb", "commit": COMMIT}
    assert load_raw_rows(imdb.model_copy(update={"revision": "main"})).origin == raw.origin


def test_prompts_with_toxicity_within(cache: Cache, tmp_path: Path, params: Params) -> None:
    write_real_toxicity_prompts(tmp_path / "rtp", TEXTS)
    cache.add("allenai/real-toxicity-prompts", tmp_path / "rtp", kind="dataset")
    columns = params.data.columns.model_copy(update={"text": "prompt.text", "label": "prompt.toxicity"})
    values = {"source": "hub", "name": "allenai/real-toxicity-prompts", "revision": COMMIT, "columns": columns}
    values |= {"label_above": 0.5, "no_label": [None, 0], "positive_label": 0, "test_share": 0.2}
    values |= {"train_rows": None, "test_rows": None, "second_scorer_rows": 0}
    raw = load_raw_rows(params.data.model_copy(update=values))
    assert raw.counts["train"].read == 30
    assert raw.counts["train"].dropped["no label"] == 2
    assert sorted(row.label for row in raw.test) == [0, 0, 1, 1, 1]  # a fifth of 12 toxic and 16 other ones


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "stanfordnlp/nosuch"}, "data.name = 'stanfordnlp/nosuch': neither a local folder nor to be had from"),
        ({"revision": "v9"}, "data.name = 'stanfordnlp/imdb': neither a local folder nor to be had from the hub"),
        ({"config": "other"}, "cannot be read: BuilderConfig 'other' not found. Available: ['plain_text']; check"),
        ({"splits": {"train": "nosuch", "test": "test"}}, "split nosuch, revision"),
        ({"columns": {"text": "body"}}, "data set stanfordnlp/imdb lacks the column body; it has text, label: set"),
        ({"columns": {"label": "stars"}}, "data set stanfordnlp/imdb lacks the column stars; it has text, label: set"),
        ({"positive_label": 7}, "row 2: column label holds 1 besides 0 and data.positive_label 7; there must be two"),
    ],
    ids=["name", "revision", "config", "split", "text", "label", "positive"],
)  # fmt: skip
def test_wishes_that_a_data_set_does_not_meet(values: dict[str, object], message: str, imdb: DataParams) -> None:
    for section in ("splits", "columns"):
        if section in values:
            values = values | {section: getattr(imdb, section).model_copy(update=values[section])}
    assert message in refusal(lambda: load_raw_rows(imdb.model_copy(update=values)))


def test_a_folder_with_a_data_sets_files_is_read_too(imdb: DataParams, tmp_path: Path) -> None:
    raw = load_raw_rows(imdb.model_copy(update={"name": str(tmp_path / "imdb")}))
    assert [row.text for row in raw.train] == [f"train {text}" for text in TEXTS]
    assert raw.origin == {"source": "hub", "name": str(tmp_path / "imdb"), "commit": ""}


def test_records_say_where_they_stand(imdb: DataParams) -> None:
    where, record = next(iter(hub_records(imdb, "test", ["text"])))
    assert where == "stanfordnlp/imdb split test row 1"
    assert record["text"] == f"test {TEXTS[0]}"


def test_the_end_of_text_pads_as_in_gpt2(models: Path) -> None:
    tokenizer = load_tokenizer(str(models / "gpt2"))
    assert tokenizer.pad_token_id == END
    ids = tokenizer("we saw")["input_ids"]
    assert tokenizer.decode(ids) == "we saw"
