"""Models and tokenizers from local folders, of the shapes that users have, and one clear line where that fails."""

import json
from pathlib import Path

import pytest
import torch
import transformers.dynamic_module_utils
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2LMHeadModel,
    GPTJConfig,
    GPTJForCausalLM,
    PreTrainedTokenizerBase,
)

from rarlhf.classifier import train_tokenizer
from rarlhf.errors import UserError
from rarlhf.loading import load_causal_lm, load_classifier, load_tokenizer, save_model
from rarlhf.params import Params
from rarlhf.policy import Sampling, response_logprobs
from rarlhf.sampling import left_pad, sample_responses

END = 0


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
    queries, mask = left_pad([[5, 6, 7], [8]], END, torch.device("cpu"))
    sampling = Sampling(temperature=1.0, min_new_tokens=4, max_new_tokens=4, end_id=END)
    uniforms = torch.rand(2, 4, generator=torch.Generator().manual_seed(1))
    episodes = sample_responses(model, queries, mask, sampling, uniforms)
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
