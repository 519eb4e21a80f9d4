"""Models and tokenizers from local folders, of the shapes that users have, and one clear line where that fails."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers.dynamic_module_utils
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from rarlhf.config.errors import UserError
from rarlhf.config.params import Params
from rarlhf.decoding.prompts import left_pad
from rarlhf.decoding.sampling import Decoding, sample_responses
from rarlhf.models.loading import Storage, load_backbone, load_causal_lm, load_classifier, load_tokenizer, save_model
from rarlhf.models.policy import Sampling, response_logprobs
from rarlhf.training.reward import train_tokenizer

END = 0
CPU = torch.device("cpu")
INT8 = Storage("float32", "int8", 6.0)
Weights = dict[str, Tensor]
BLOCK = "transformer.h.1.mlp.c_fc"


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_a_gpt2_comes_back_in_eval_mode(lm: GPT2LMHeadModel, lm_folder: Path) -> None:
    model, tokenizer = load_causal_lm(str(lm_folder))
    assert isinstance(model, GPT2LMHeadModel)
    assert not model.training
    assert torch.equal(model.transformer.wte.weight, lm.transformer.wte.weight)
    assert tokenizer("film")["input_ids"] == load_tokenizer(str(lm_folder))("film")["input_ids"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_are_float32_whatever_they_are_stored_in(
    dtype: torch.dtype, lm: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    save_model(lm.to(dtype), tokenizer, tmp_path)
    model, _ = load_causal_lm(str(tmp_path))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.transformer.wte.weight, lm.transformer.wte.weight.float())


def test_a_gptj_is_sampled_and_measured_like_a_gpt2(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {"n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4, "initializer_range": 0.5}
    config = GPTJConfig(vocab_size=len(tokenizer), bos_token_id=END, eos_token_id=END, **shape)
    save_model(GPTJForCausalLM(config), tokenizer, tmp_path)
    model, _ = load_causal_lm(str(tmp_path))
    prompts = left_pad([[5, 6, 7], [8]], END, torch.device("cpu"))
    sampling = Sampling(temperature=1.0, min_new_tokens=4, max_new_tokens=4, end_id=END)
    uniforms = torch.rand(2, 4, generator=torch.Generator().manual_seed(1))
    episodes = sample_responses(Decoding(model, sampling), prompts, uniforms)
    logprobs = response_logprobs(model, episodes, sampling._replace(min_new_tokens=0))
    for row, query in enumerate(([5, 6, 7], [8])):
        response = episodes.responses[row]
        with torch.no_grad():  # the plain model on the text alone, without padding or cache
            plain = model(torch.tensor([[*query, *response.tolist()]])).logits[0].log_softmax(dim=-1)
        expected = plain[len(query) - 1 : -1].gather(1, response.unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(logprobs[row], expected, atol=1e-4, rtol=1e-4)


def test_classifiers_of_either_shape_come_back_in_eval_mode(params: Params, tmp_path: Path) -> None:
    words = train_tokenizer(["a good film", "a bad film"], params.reward)
    labels = dict(enumerate(["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]))
    bert = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    bert.id2label, bert.label2id = labels, {name: index for index, name in labels.items()}
    distil = DistilBertConfig(vocab_size=len(words), dim=16, n_layers=1, n_heads=2, hidden_dim=16, num_labels=2)
    save_model(BertForSequenceClassification(bert), words, tmp_path / "bert")
    save_model(DistilBertForSequenceClassification(distil), words, tmp_path / "distil")
    for name, outputs in (("bert", 6), ("distil", 2)):
        model, tokenizer = load_classifier(str(tmp_path / name))
        assert not model.training
        assert len(model.config.id2label) == outputs
        with torch.no_grad():
            ids = tokenizer("a good film", return_tensors="pt")
            assert model(ids["input_ids"], ids["attention_mask"]).logits.shape == (1, outputs)
    assert load_classifier(str(tmp_path / "bert"))[0].config.id2label == labels


@pytest.mark.parametrize("load", [load_causal_lm, load_classifier])
def test_a_folder_that_is_no_model_is_one_line(load: object, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(UserError, match="this folder cannot be loaded as such a model") as caught:
        load(str(tmp_path))
    one_line(caught)


def test_pickled_weights_are_refused(lm: GPT2LMHeadModel, lm_folder: Path) -> None:
    torch.save(lm.state_dict(), lm_folder / "pytorch_model.bin")
    (lm_folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=f"pickled weights alone, and no pickle.*`rarlhf convert {lm_folder} FOLDER`"):
        load_causal_lm(str(lm_folder))


def test_a_tokenizer_without_end_of_text_is_refused(
    tokenizer: PreTrainedTokenizerBase, lm_folder: Path, params: Params
) -> None:
    words = train_tokenizer(["a good film"], params.reward)  # has no end of text
    words.save_pretrained(lm_folder)
    with pytest.raises(UserError, match="has no end-of-text token; set eos_token in its tokenizer_config.json"):
        load_tokenizer(str(lm_folder))


def test_the_end_of_text_pads_where_nothing_else_does(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    without_padding(tokenizer, tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.pad_token_id == loaded.eos_token_id == END


def test_a_classifiers_weights_are_float32_too(params: Params, tmp_path: Path) -> None:
    words = train_tokenizer(["a good film"], params.reward)
    config = DistilBertConfig(vocab_size=len(words), dim=16, n_layers=1, n_heads=2, hidden_dim=16)
    save_model(DistilBertForSequenceClassification(config).to(torch.bfloat16), words, tmp_path)
    model, _ = load_classifier(str(tmp_path))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_code_in_a_models_folder_is_not_run(lm_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    (lm_folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    config = json.loads((lm_folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (lm_folder / "config.json").write_text(json.dumps(config))
    assert isinstance(load_causal_lm(str(lm_folder))[0], GPT2LMHeadModel)
    assert not (tmp_path / "ran").exists()


def test_padding_of_its_own_stays(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    type(tokenizer).from_pretrained(tmp_path, pad_token="film").save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).pad_token == "film"


def test_a_classifier_that_cannot_pad_is_refused(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    config = DistilBertConfig(vocab_size=len(tokenizer), dim=16, n_layers=1, n_heads=2, hidden_dim=16)
    DistilBertForSequenceClassification(config).save_pretrained(tmp_path)
    without_padding(tokenizer, tmp_path)
    with pytest.raises(UserError, match="has no padding token; set pad_token in its tokenizer_config.json"):
        load_classifier(str(tmp_path))


def without_padding(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes the tokenizer without a padding token, as gpt2's comes."""
    tokenizer.save_pretrained(folder)
    bare = type(tokenizer).from_pretrained(folder, pad_token=None)
    bare.save_pretrained(folder)
    assert type(tokenizer).from_pretrained(folder).pad_token is None


def edit(folder: Path, change: Callable[[Weights], Weights]) -> None:
    """Rewrites the weights of a folder."""
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def without(part: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name: value for name, value in weights.items() if part not in name}


def refusal(load: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(UserError) as caught:
        load(*arguments)
    return one_line(caught)


def test_a_language_model_is_no_classifier(lm_folder: Path) -> None:
    assert refusal(load_classifier, str(lm_folder)) == (
        f"reward.source = '{lm_folder}': its weights are not those of a GPT2ForSequenceClassification: missing: "
        "score.weight. A score needs a sequence classifier, and config.json names GPT2LMHeadModel: give one"
    )


@pytest.fixture
def decoder(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    """A GPT-2 with an output that scores; its configuration names no padding."""
    torch.manual_seed(6)
    shape = {"n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2, "num_labels": 1, "initializer_range": 0.5}
    config = GPT2Config(vocab_size=len(tokenizer), bos_token_id=END, eos_token_id=END, **shape)
    save_model(GPT2ForSequenceClassification(config), tokenizer, tmp_path / "decoder")
    return tmp_path / "decoder"


def test_a_classifier_is_no_language_model(decoder: Path) -> None:
    assert refusal(load_causal_lm, str(decoder)) == (
        f"model.source = '{decoder}': its weights are not those of a GPT2LMHeadModel: not part of it: score.weight. "
        "A language model is needed, and config.json names GPT2ForSequenceClassification, a classifier: give one"
    )


FAULTS: dict[str, tuple[Callable[[Weights], Weights], str]] = {
    "missing": (
        without("mlp"),
        "missing: transformer.h.0.mlp.c_fc.bias, transformer.h.0.mlp.c_fc.weight, transformer.h.0.mlp.c_proj.bias "
        "and 5 more. Copy or fetch the folder again",
    ),
    "unknown": (
        lambda weights: weights | {"v_head.summary.weight": torch.ones(1, 16)},
        "not part of it: v_head.summary.weight. If the model is right without them, load it by transformers, save it",
    ),
    "shape": (
        lambda weights: weights | {f"{BLOCK}.weight": torch.ones(16, 32)},
        f"of another shape: {BLOCK}.weight (16x32 there, 16x64 by config.json). Copy or fetch",
    ),
    "nan": (lambda weights: weights | {f"{BLOCK}.bias": torch.full((64,), torch.nan)}, f"not finite: {BLOCK}.bias. "),
    "nan in a matrix": (
        lambda weights: weights | {f"{BLOCK}.weight": torch.full((16, 64), torch.nan)},
        f"not finite: {BLOCK}.weight. ",
    ),
    "inf": (
        lambda weights: weights | {f"{BLOCK}.bias": torch.tensor([1.0] * 63 + [-torch.inf])},
        f"not finite: {BLOCK}.bias. ",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "load", [load_causal_lm, lambda folder: load_backbone(folder, INT8, CPU)], ids=["as is", "8 bits"]
)
def test_weights_that_are_not_the_models_are_refused(load: Callable[..., object], fault: str, lm_folder: Path) -> None:
    change, message = FAULTS[fault]
    edit(lm_folder, change)
    said = refusal(load, str(lm_folder)).replace("32x16 there, 64x16", "16x32 there, 16x64")  # 8 bits are transposed
    assert message in said


def test_a_shard_that_its_index_or_the_folder_lacks_is_refused(lm: GPT2LMHeadModel, lm_folder: Path) -> None:
    (lm_folder / "model.safetensors").unlink()
    lm.save_pretrained(lm_folder, max_shard_size="20KB")
    load_causal_lm(str(lm_folder))
    index = lm_folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    shard = content["weight_map"][f"{BLOCK}.weight"]
    content["weight_map"] = {name: file for name, file in content["weight_map"].items() if file != shard}
    whole = index.read_text()
    index.write_text(json.dumps(content))
    assert "missing: " in refusal(load_causal_lm, str(lm_folder))
    index.write_text(whole)
    (lm_folder / shard).unlink()
    assert shard in refusal(load_causal_lm, str(lm_folder))


def test_a_file_that_is_cut_short_is_refused(lm_folder: Path) -> None:
    file = lm_folder / "model.safetensors"
    for size in (file.stat().st_size // 2, 0):
        file.write_bytes(file.read_bytes()[:size])
        assert "this folder cannot be loaded as such a model (SafetensorError: " in refusal(
            load_causal_lm, str(lm_folder)
        )


def bert(words: int, **values: object) -> PreTrainedModel:
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertForSequenceClassification(BertConfig(vocab_size=words, **shape, **values))


def test_labels_that_are_not_the_heads_are_refused(params: Params, tmp_path: Path) -> None:
    words = train_tokenizer(["a good film"], params.reward)
    save_model(bert(len(words), num_labels=6), words, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"id2label": {"0": "toxic", "1": "kind"}, "label2id": {"toxic": 0, "kind": 1}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert (
        "of another shape: classifier.bias (6 there, 2 by config.json), classifier.weight (6x16 there, 2x16 by "
        "config.json). Copy or fetch the folder again; if config.json was edited, undo that"
    ) in refusal(load_classifier, str(tmp_path))


def masks(names: str, size: int = 32) -> Weights:
    """What older versions of transformers stored of attention besides its weights."""
    mask = torch.ones(1, 1, size, size).tril()
    blocks = (names.format(layer) for layer in range(2))
    return {
        name: value.clone()
        for block in blocks
        for name, value in ((f"{block}.bias", mask), (f"{block}.masked_bias", torch.tensor(-1e4)))
    }


def test_gpt2_as_the_hub_has_it_loads(lm: GPT2LMHeadModel, lm_folder: Path) -> None:
    """Without the head's prefix or a head of its own, with masks; older ones with both and more constants."""
    expected = {name: value.clone() for name, value in lm.state_dict().items()}
    edit(lm_folder, lambda weights: {name.removeprefix("transformer."): value for name, value in weights.items()})
    edit(lm_folder, lambda weights: weights | {k: v for k, v in masks("h.{}.attn").items() if "masked" not in k})
    for change in (
        lambda weights: weights,
        lambda weights: (
            {f"transformer.{name}": value for name, value in weights.items()}
            | masks("transformer.h.{}.attn")
            | {"lm_head.weight": weights["wte.weight"].clone()}
        ),
    ):
        edit(lm_folder, change)
        loaded = load_causal_lm(str(lm_folder))[0].state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in expected.items())


def test_gptj_as_the_hub_has_it_loads(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    shape = {"n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4}
    save_model(GPTJForCausalLM(GPTJConfig(vocab_size=len(tokenizer), **shape)), tokenizer, tmp_path)
    edit(tmp_path, lambda weights: weights | masks("transformer.h.{}.attn"))
    load_causal_lm(str(tmp_path))
    load_backbone(str(tmp_path), INT8, CPU)


def test_classifiers_as_the_hub_has_them_load(params: Params, tmp_path: Path) -> None:
    """toxic-bert stores its positions' numbers; RoBERTa's classifiers a layer of the encoder that they do not use."""
    words = train_tokenizer(["a good film"], params.reward)
    save_model(bert(len(words), num_labels=6), words, tmp_path / "bert")
    edit(tmp_path / "bert", lambda weights: weights | {"bert.embeddings.position_ids": torch.arange(512)[None]})
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    save_model(
        RobertaForSequenceClassification(RobertaConfig(vocab_size=len(words), **shape)), words, tmp_path / "roberta"
    )
    pooler = {"roberta.pooler.dense.weight": torch.ones(16, 16), "roberta.pooler.dense.bias": torch.ones(16)}
    edit(tmp_path / "roberta", lambda weights: weights | pooler)
    for name in ("bert", "roberta"):
        load_classifier(str(tmp_path / name))


def test_a_folder_without_a_tokenizer_is_refused(lm_folder: Path, params: Params, tmp_path: Path) -> None:
    """transformers makes one that knows no word."""
    words = train_tokenizer(["a good film"], params.reward)
    save_model(bert(len(words)), words, tmp_path / "bert")
    for folder, load in (
        (lm_folder, load_causal_lm),
        (lm_folder, load_tokenizer),
        (tmp_path / "bert", load_classifier),
    ):
        for file in folder.glob("tokenizer*"):
            file.unlink()
        assert "there is no tokenizer in this folder; copy the files of the model's own" in refusal(load, str(folder))


def test_an_adapter_is_no_classifier(lm_folder: Path) -> None:
    (lm_folder / "adapter_config.json").write_text("{}")
    assert refusal(load_classifier, str(lm_folder)).endswith(
        "is an adapter, and a whole classifier is needed: merge it first"
    )


@pytest.mark.parametrize("pad", [None, 5])
def test_padding_of_a_classifier_follows_the_text_and_is_known_to_it(pad: int | None, decoder: Path) -> None:
    """Else a decoder's score would be read off the padding, or off the first text of a batch alone."""
    config = json.loads((decoder / "config.json").read_text()) | {"pad_token_id": pad}
    (decoder / "config.json").write_text(json.dumps(config))
    side = json.loads((decoder / "tokenizer_config.json").read_text()) | {"padding_side": "left"}
    (decoder / "tokenizer_config.json").write_text(json.dumps(side))
    model, tokenizer = load_classifier(str(decoder))
    texts = ["we liked the film .", "we saw it"]
    plain = AutoModelForSequenceClassification.from_pretrained(decoder, pad_token_id=None)
    with torch.no_grad():
        alone = torch.cat([plain(torch.tensor([tokenizer(text)["input_ids"]])).logits for text in texts])
        batch = tokenizer(texts, padding=True, return_tensors="pt")
        together = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
