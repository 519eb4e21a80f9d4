"""Quark with an adapter: what is trained, what stays, and what a folder gives back."""

import warnings
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from rarlhf.commands.merge import merge_adapter
from rarlhf.config.params import Params
from rarlhf.data.prompts import Query
from rarlhf.decoding.writing import Choices, OpenModel, open_model, write
from rarlhf.models.adapters import POLICY
from rarlhf.models.backbone import AdapterModel, ModelFolders, WholeModel
from rarlhf.models.episodes import Episodes
from rarlhf.models.fused import fuse_activations
from rarlhf.models.loading import load_causal_lm, save_model
from rarlhf.models.policy import logits_of, logits_size, response_states
from rarlhf.models.way import Way, own_way
from rarlhf.system.machine import Machine
from rarlhf.training.quark import TOKEN, Quark, add_tokens
from rarlhf.training.supervised import Seat
from tests.rarlhf.models.adapters.tiny import CPU, QUERIES, gpt2, lengths, logprobs, section
from tests.rarlhf.small import Keeping

SETTINGS = {
    "rounds": 2,
    "prompts": 10,
    "steps": 3,
    "quantiles": 3,
    "batch_size": 8,
    "micro_batch_size": 4,
    "lr": 0.02,
    "warmup": 0.0,
}
OUT = Path("models/quark/1")
NAMES = [TOKEN.format(k) for k in (1, 2, 3)]


@pytest.fixture
def queries() -> list[Query]:
    fields = {"prompt": "we", "prompt_score": 0.0, "label": 1}
    return [{"prompt_id": i, "input_ids": row, **fields} for i, row in enumerate(QUERIES)]  # type: ignore[misc]


@pytest.fixture
def quark(sft: Path, mode: str, small: Params, machine: Machine, queries: list[Query]) -> Quark:
    return a_quark(sft, mode, small, machine, queries)


def a_quark(start: Path, mode: str, params: Params, machine: Machine, queries: list[Query]) -> Quark:
    model = AdapterModel(start, section(params, mode), 1, CPU)
    settings = params.tuning.quark.model_copy(update=SETTINGS)
    return Quark(settings, model, queries, lengths, params, Seat(machine, Keeping(), 1))


@torch.no_grad()
def behind(lm: torch.nn.Module, episodes: Episodes, token: int) -> Tensor:
    """Logits (B, T, V) of responses to queries of one length behind a token."""
    first = torch.full((len(episodes.queries), 1), token)
    text = torch.cat([first, episodes.queries[:, -1:], episodes.responses], dim=1)
    return lm(text).logits[:, 1:-1]


def test_the_first_policy_is_sft_on_the_old_tokens(
    quark: Quark, sft: Path, mode: str, small: Params, episodes: Episodes
) -> None:
    alone = AdapterModel(sft, section(small, mode), 1, CPU).lm
    fuse_activations(alone)  # as in a training: 8 bits make a difference of rounding a larger one
    before = logprobs(alone, episodes)
    assert torch.equal(logprobs(quark.start.lm, episodes), before)
    with quark.ref_policy() as lm:
        assert torch.equal(logprobs(lm, episodes), before)
    quark.draw(1)
    quark.draw(2)
    first, second = (row for _, row in quark.recorder.rows)  # type: ignore[attr-defined]
    assert first["quark/kl"] == 0
    assert abs(second["quark/kl"]) > 1e-3  # the token says something, at random still


def test_an_adapter_and_its_tokens_are_all_that_is_trained(quark: Quark, base: Path, episodes: Episodes) -> None:
    whole = load_causal_lm(str(base))[0]
    names = [name for name, weight in quark.start.lm.named_parameters() if weight.requires_grad]
    assert sum("trainable_tokens_delta" in name for name in names) == 1
    assert all(f".{POLICY}" in name for name in names)
    delta = quark.start.lm.get_input_embeddings().token_adapter.trainable_tokens_delta[POLICY]
    assert delta.shape == (3, 16)
    assert delta.dtype == torch.float32
    old = delta.detach().clone()
    with quark.ref_policy() as lm:
        reference = logprobs(lm, episodes)
    quark.rounds()
    assert ((delta - old).abs().amax(dim=1) > 1e-3).all()  # each token's row
    with quark.ref_policy() as lm:
        assert torch.equal(logprobs(lm, episodes), reference)
    table = quark.start.lm.get_input_embeddings().original_module.weight
    assert torch.equal(table[: whole.config.vocab_size], whole.get_input_embeddings().weight)
    assert logits_size(quark.start.lm) == whole.config.vocab_size


def test_tokens_start_as_in_a_whole_model(quark: Quark, base: Path) -> None:
    whole = WholeModel(base, CPU)
    ids = add_tokens(whole, 3, 1)
    assert ids == quark.tokens
    started = quark.start.lm.get_input_embeddings().token_adapter.trainable_tokens_delta[POLICY]
    assert torch.equal(started, whole.lm.get_input_embeddings().weight[ids])
    assert started.std() > 0.05


def test_a_saved_policy_is_the_trained_one_on_a_shared_backbone(
    quark: Quark, sft: Path, base: Path, mode: str, small: Params, episodes: Episodes
) -> None:
    """Other adapters on the backbone, and the backbone itself, have the same logits beside it as alone."""
    quark.rounds()
    quark.save(OUT)
    best = quark.tokens[-1]
    values = behind(quark.start.lm, episodes, best)
    with quark.ref_policy() as lm:
        assert not torch.equal(values, behind(lm, episodes, best))
    alone = ModelFolders(section(small, mode), CPU)
    with alone.open(sft)() as lm:
        of_sft = logprobs(lm, episodes)
    folders = ModelFolders(section(small, mode), CPU)
    opened = [folders.open(folder) for folder in (sft, OUT, base, OUT)]
    with opened[0]() as lm:
        assert torch.equal(logprobs(lm, episodes), of_sft)
        fuse_activations(lm)  # as in the training
    for number in (1, 3):
        with opened[number]() as lm:
            assert torch.equal(behind(lm, episodes, best), values)
    again = open_model(OUT, CPU).lm
    fuse_activations(again)
    assert torch.equal(behind(again, episodes, best), values)


def test_no_added_token_is_drawn_and_the_folder_says_how_to_decode(quark: Quark) -> None:
    quark.rounds()
    quark.save(OUT)
    model = open_model(OUT, CPU)
    assert model.way == own_way(OUT) == Way([quark.tokens[-1]], quark.tokens)
    texts = texts_of(model)
    by_hand = texts_of(model._replace(way=Way((), quark.tokens)), "<|quark_3|>we saw")
    assert texts == by_hand != texts_of(model._replace(way=Way((), quark.tokens)))
    assert GenerationConfig.from_pretrained(OUT).suppress_tokens == quark.tokens
    assert int(quark.pool.responses.max()) < min(quark.tokens)


def texts_of(model: OpenModel, prompt: str = "we saw") -> list[str]:
    return [one.text for one in write(model, [prompt], Choices(6, 8, 1.0, 1, 16))]


def test_plain_peft_loads_the_folder(quark: Quark, mode: str, episodes: Episodes) -> None:
    quark.rounds()
    quark.save(OUT)
    values = behind(quark.start.lm, episodes, quark.tokens[-1])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        plain = peft.AutoPeftModelForCausalLM.from_pretrained(OUT, dtype=torch.float32).eval()
    ids = AutoTokenizer.from_pretrained(OUT).convert_tokens_to_ids(NAMES)
    assert ids == quark.tokens
    size = values.shape[-1]
    tolerance = {"lora": 1e-5, "int8": 0.3}[mode]  # plain peft loads the base as it is, not quantised
    torch.testing.assert_close(
        behind(plain, episodes, ids[-1])[..., :size].log_softmax(dim=-1),
        values.log_softmax(dim=-1),
        atol=tolerance,
        rtol=0,
    )
    asked = torch.tensor([[ids[-1], 5, 6]])
    drawn = plain.generate(
        input_ids=asked,
        attention_mask=torch.ones_like(asked),
        generation_config=GenerationConfig.from_pretrained(OUT),
        do_sample=True,
        max_new_tokens=8,
        num_return_sequences=20,
    )
    assert not torch.isin(drawn[:, 3:], torch.tensor(ids)).any()


def test_the_merged_model_is_the_adapters(quark: Quark, base: Path, mode: str, episodes: Episodes) -> None:
    quark.rounds()
    quark.save(OUT)
    difference = merge_adapter(OUT, Path("merged"))
    values = behind(quark.start.lm, episodes, quark.tokens[-1])
    merged = AutoModelForCausalLM.from_pretrained("merged", dtype="auto")
    plain = load_causal_lm(str(base))[0]
    assert merged.config.tie_word_embeddings == plain.config.tie_word_embeddings
    assert merged.config.vocab_size == plain.config.vocab_size + 3
    assert merged.generation_config.suppress_tokens == quark.tokens
    found = behind(merged, episodes, quark.tokens[-1])[..., : plain.config.vocab_size]
    tolerance = {"lora": 1e-5, "int8": 0.3}[mode]  # int8 rounds activations too
    torch.testing.assert_close(found.log_softmax(dim=-1), values.log_softmax(dim=-1), atol=tolerance, rtol=0)
    assert difference.largest <= tolerance
    assert own_way(Path("merged")) == own_way(OUT)
    if mode == "lora":
        assert texts_of(open_model(Path("merged"), CPU)) == texts_of(open_model(OUT, CPU))


def test_equal_seeds_give_equal_bytes(
    sft: Path, mode: str, small: Params, machine: Machine, queries: list[Query]
) -> None:
    for name in "ab":
        quark = a_quark(sft, mode, small, machine, queries)
        quark.rounds()
        quark.save(Path(name))
    files = [{path.name: path.read_bytes() for path in Path(name).iterdir()} for name in "ab"]
    assert files[0] == files[1]
    assert "adapter_model.safetensors" in files[0]


@pytest.mark.parametrize("tied", [True, False])
def test_rows_to_spare_are_used(
    tied: bool,
    tokenizer: PreTrainedTokenizerBase,
    small: Params,
    machine: Machine,
    queries: list[Query],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From a whole model whose table has rows to spare: the reference keeps what it gives to them."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(4)
    lm = gpt2(len(tokenizer) + 5)
    if not tied:
        lm.config.tie_word_embeddings = False
        lm.lm_head.weight = torch.nn.Parameter(lm.lm_head.weight.detach().clone())
    save_model(lm, tokenizer, Path("models/base"))
    tokens = torch.tensor([[4, 5, 6]])
    before = load_causal_lm("models/base")[0](tokens).logits
    quark = a_quark(Path("models/base"), "lora", small, machine, queries)
    quark.rounds()
    with quark.ref_policy() as opened:
        # On some processors equal matrices at other addresses give other last digits.
        torch.testing.assert_close(opened(tokens).logits, before, atol=1e-5, rtol=0)
    quark.save(OUT)
    again, ids = open_model(OUT, CPU), torch.tensor([[quark.tokens[-1], 5, 6]])
    fuse_activations(again.lm)
    assert torch.equal(again.lm(ids).logits, quark.start.lm(ids).logits)
    merge_adapter(OUT, Path("merged"))
    merged = AutoModelForCausalLM.from_pretrained("merged")
    assert merged.config.vocab_size == len(tokenizer) + 5
    values = merged(ids).logits[..., : len(tokenizer)]
    torch.testing.assert_close(values, again.lm(ids).logits[..., : len(tokenizer)], atol=1e-5, rtol=0)
    assert logits_of(merged, response_states(merged, Episodes(ids, ids > -1, ids, ids > -1))).isfinite().all()
