"""Decoding with a cache gives the probabilities of the full pass."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import LogitsProcessorList, PretrainedConfig, PreTrainedTokenizerBase

from rarlhf.commands.merge import merge_adapter
from rarlhf.config.baselines import DExpertsParams
from rarlhf.config.params import Params
from rarlhf.decoding.prompts import Prompts, left_pad
from rarlhf.decoding.reweighted import DExperts
from rarlhf.decoding.rules import DecodingRule, Reader
from rarlhf.decoding.sampling import Decoding, Numbers, Responses, draw, sample_responses
from rarlhf.models.backbone import AdapterModel, ModelFolders
from rarlhf.models.loading import load_causal_lm
from rarlhf.models.policy import Sampling
from rarlhf.models.reference import RefPolicy, frozen
from rarlhf.system.streams import generator
from tests.rarlhf.models.adapters.tiny import CPU, QUERIES, logprobs, section, with_outliers


def sharp(base: Path) -> PretrainedConfig:
    """The configuration of the model in `base` with larger initial weights."""
    config = load_causal_lm(str(base))[0].config
    config.initializer_range = 0.4
    return config


def cached_and_full(start: AdapterModel) -> float:
    """Largest difference between the probability a token was drawn with and that of the full pass, in nats."""
    sampling = Sampling(1.0, 0, 8, start.tokenizer.eos_token_id)
    uniforms = torch.rand(14, 8, generator=generator("draws"))
    seen = []
    head = start.lm.get_output_embeddings()
    hook = head.register_forward_hook(lambda module, inputs, output: seen.append(output[:, -1]))
    episodes = sample_responses(Decoding(start.lm, sampling), left_pad(QUERIES, 0, CPU), uniforms)
    hook.remove()
    cached = torch.stack(seen, dim=1).log_softmax(dim=-1).gather(-1, episodes.responses.unsqueeze(-1)).squeeze(-1)
    return float((cached - logprobs(start.lm, episodes))[episodes.response_mask].abs().max())


def test_cached_decoding_agrees_with_the_full_pass(sft: Path, mode: str, small: Params) -> None:
    difference = cached_and_full(AdapterModel(sft, section(small, mode), 1, CPU))
    assert difference <= 1e-5


def test_where_weights_alone_are_8_bit_companions_do_not_matter(
    base: Path, small: Params, tokenizer: PreTrainedTokenizerBase
) -> None:
    torch.manual_seed(0)  # a model sharp enough that LLM.int8 feels them by much
    with_outliers(type(load_causal_lm(str(base))[0])(sharp(base))).save_pretrained(base)
    off = {
        threshold: cached_and_full(AdapterModel(base, section(small, "int8", int8_threshold=threshold), 1, CPU))
        for threshold in (6.0, 1e-9)
    }
    assert off[6.0] > 0.01  # negative control
    assert off[1e-9] < 1e-4


class Products(DecodingRule):
    """The product of the model's distribution and a further model's."""

    def __init__(self, model: RefPolicy) -> None:
        self.model = model

    def processors(self, prompts: Prompts, new_tokens: int) -> LogitsProcessorList:
        reader = Reader(self.model, prompts, new_tokens)
        return LogitsProcessorList([lambda tokens, logits: logits + reader(tokens)])


def test_a_rule_may_read_an_adapter_on_the_models_own_backbone(sft: Path, base: Path, small: Params) -> None:
    folders = ModelFolders(section(small, "lora"), CPU)
    tuned, bare = folders.open(sft), folders.open(base)
    apart = load_causal_lm(str(base))[0]
    prompts = left_pad(QUERIES, 0, CPU)
    numbers = Numbers(torch.rand(1, 14, 8, generator=generator("draws")), torch.zeros(1, 14))
    with bare() as lm:
        before = lm(prompts.tokens[:1]).logits
        episodes, kept, *_ = draw(Decoding(lm, Sampling(1.0, 8, 8, 0), Products(tuned)), prompts, numbers)
        assert torch.equal(lm(prompts.tokens[:1]).logits, before)  # the adapter is off again
    with tuned() as lm, torch.no_grad():
        for query, response, logprobs in zip(QUERIES, episodes.responses, kept, strict=True):
            text = torch.tensor([[*query, *response.tolist()]])
            product = sum(model(text).logits[0, len(query) - 1 : -1] for model in (lm, apart))
            product[:, 0] = -torch.inf  # the end cannot be drawn
            expected = product.log_softmax(dim=-1).gather(1, response.unsqueeze(1)).squeeze(1)
            torch.testing.assert_close(logprobs, expected, atol=1e-4, rtol=0)


def perturbed(base: Path, params: Params, seed: int, folder: Path) -> Path:
    """An adapter with random weights on the model in `base`."""
    start = AdapterModel(base, section(params, "lora"), seed, CPU)
    with torch.no_grad():
        for name, value in start.lm.named_parameters():
            if "lora_B" in name:
                value.normal_(std=0.3, generator=generator("perturbed", seed))
    start.save(folder)
    return folder


def test_dexperts_of_three_adapters_is_that_of_three_whole_models(base: Path, small: Params) -> None:
    names = ("model", "expert", "anti_expert")
    adapters = [perturbed(base, small, seed, Path(name)) for seed, name in enumerate(names)]
    for folder in adapters:
        merge_adapter(folder, Path(f"merged_{folder}"), None)
    folders = ModelFolders(section(small, "lora"), CPU)
    shared = [folders.open(folder) for folder in adapters]
    apart = [frozen(load_causal_lm(f"merged_{folder}")[0]) for folder in adapters]
    prompts, numbers = (
        left_pad(QUERIES, 0, CPU),
        Numbers(torch.rand(1, 14, 8, generator=generator("draws")), torch.zeros(1, 14)),
    )

    def drawn(models: Sequence[RefPolicy], top_p: float = 0.9) -> Responses:
        model, *experts = models
        rule = DExperts(DExpertsParams(alpha=1.5, top_p=top_p), *experts)
        with model() as lm:
            return draw(Decoding(lm, Sampling(1.0, 2, 8, 0), rule), prompts, numbers)

    on_one, on_three = drawn(shared), drawn(apart)
    assert torch.equal(on_one.episodes.responses, on_three.episodes.responses)
    torch.testing.assert_close(on_one.logprobs, on_three.logprobs, atol=1e-3, rtol=0)
    swapped = drawn([shared[0], shared[2], shared[1]])
    assert not torch.equal(swapped.episodes.responses, on_one.episodes.responses)  # which adapter is on matters
