"""params.yaml as one typed, frozen, validated model.

`rarlhf.config.load` reads the file. Units, ranges and sources are comments beside the keys in presets/*.yaml; there are
no defaults here, so that params.yaml stays the one home of every value.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from rarlhf.config.baselines import (
    Chosen,
    DecodingParams,
    HeadParams,
    RegularisedParams,
    TuningParams,
    chosen,
    with_head,
)
from rarlhf.config.fields import (
    Batch,
    Count,
    CountOrZero,
    Epochs,
    NonNegative,
    Number,
    Open01,
    Positive,
    Section,
    Seed,
    Share,
    Steps,
)
from rarlhf.config.groups import MethodParams
from rarlhf.config.judging import NO_JUDGE, JudgeParams, RewardParams, ScorerParams
from rarlhf.config.utility import UtilityParams


class RuntimeParams(Section):
    """Machine settings that the bytes of the results depend on."""

    device: Literal["cpu", "cuda", "auto"]
    threads: Annotated[int, Field(ge=1, le=256)]
    precision: Literal["float32", "bfloat16", "auto"]
    decode: Literal["eager", "compiled"]
    sharding: Literal["none", "full"]


class ColumnParams(Section):
    """Column of each field in a file or hub data set; dots reach into nested fields, None means no such column."""

    text: Annotated[str, Field(min_length=1)] | None
    label: Annotated[str, Field(min_length=1)] | None
    prompt: str | None
    toxicity: str | None
    id: str | None


class SplitParams(Section):
    """Names of a hub data set's splits."""

    train: str
    test: str | None


class WantedShareParams(Section):
    """Share of the wanted class in each split; None keeps the share that the data has."""

    train: Open01 | None
    test: Open01 | None


class DataParams(Section):
    """Where the rows come from."""

    source: Literal["generator", "file", "hub"]
    path: str | None
    watch: list[Literal["path"]]
    name: str | None
    config: str | None
    revision: str | None
    splits: SplitParams
    columns: ColumnParams
    positive_label: int | str | bool
    no_label: list[int | str | None]
    label_above: Number | None
    min_chars: CountOrZero
    test_share: Open01 | None
    wanted_share: WantedShareParams
    train_rows: Count | None
    test_rows: Count | None
    second_scorer_rows: CountOrZero
    seed: Seed


class ScratchModelParams(Section):
    """Shape and training of a GPT-2-shaped model that is trained from scratch."""

    vocab_size: Annotated[int, Field(ge=258, le=65536)]
    context: Annotated[int, Field(ge=16, le=4096)]
    layers: Annotated[int, Field(ge=1, le=48)]
    width: Annotated[int, Field(ge=8, le=8192)]
    heads: Annotated[int, Field(ge=1, le=8192)]
    init_std: Open01
    packing: bool
    epochs: Epochs
    batch_size: Batch
    lr: Open01
    warmup: Annotated[Number, Field(ge=0, lt=1)]
    seed: Seed


class LoRAParams(Section):
    """Shape of an adapter."""

    r: Annotated[int, Field(ge=1, le=1024)]
    alpha: Positive
    dropout: Annotated[Number, Field(ge=0, lt=1)]
    target_modules: Annotated[list[str], Field(min_length=1)] | None


class ModelParams(Section):
    """The base model, and which of its weights are trained."""

    source: Annotated[str, Field(min_length=1)]
    revision: str | None
    dtype: Literal["float32", "bfloat16"]
    adapter: Literal["none", "lora"]
    quantization: Literal["none", "int8"]
    int8_threshold: Positive
    gradient_checkpointing: bool
    lora: LoRAParams
    scratch: ScratchModelParams


class PromptParams(Section):
    """How rows become queries."""

    tokens: Annotated[int, Field(ge=1, le=1024)]
    chat_template: bool
    min_chars: CountOrZero
    train: Count
    validation: Count
    test: Annotated[int, Field(ge=20, le=1_000_000_000)]
    perplexity: Count
    perplexity_texts: Literal["wanted", "all"]
    perplexity_chars: Count
    wanted_quantile: Annotated[Number, Field(ge=0, lt=1)]
    seed: Seed


class SFTParams(Section):
    """Supervised fine-tuning."""

    texts: Literal["wanted", "all"]
    tokens: Annotated[int, Field(ge=2, le=4096)]
    end_of_text: bool
    epochs: Annotated[Number, Field(ge=0, le=10_000)]
    batch_size: Batch
    micro_batch_size: Batch
    lr: Open01
    seed: Seed


class PPOParams(Section):
    """PPO as all methods of `methods.ppo` run it."""

    iterations: Annotated[int, Field(ge=2, le=1_000_000)]
    batch_size: Annotated[int, Field(ge=2, le=1_000_000)]
    mini_batch_size: Batch
    micro_batch_size: Batch | Literal["auto"]
    decode_batch_size: Batch
    rollout_logprobs: Literal["recompute", "decode"]
    epochs: Annotated[int, Field(ge=1, le=10_000)]
    lr: Open01
    value_lr: Open01
    value_warmup: Annotated[int, Field(ge=0, le=1_000_000)]
    max_new_tokens: Annotated[int, Field(ge=1, le=1_000_000)]
    min_new_tokens: CountOrZero
    min_counts_query: bool
    temperature: Annotated[Number, Field(gt=0, le=10)]
    gamma: Share
    gae_lambda: Annotated[Number, Field(ge=0, le=1)]
    clip: Open01
    value_clip: Positive | None
    value_coef: NonNegative
    max_ratio: Annotated[Number, Field(gt=1)]
    max_grad_norm: Positive | None
    responses: Batch
    baseline: Literal["critic", "query"]
    averaged: Annotated[Number, Field(ge=0, lt=1)]
    checkpoint_every: Steps

    @property
    def micro_batch(self) -> int:
        """Episodes in a forward and backward pass; the whole mini-batch until `auto` is resolved."""
        return self.mini_batch_size if self.micro_batch_size == "auto" else self.micro_batch_size

    @property
    def queries(self) -> int:
        """Queries of a batch, each with `responses` episodes."""
        return self.batch_size // self.responses


class KLParams(Section):
    """The KL penalty and its controller."""

    coef: NonNegative
    target: Positive
    controller: Literal["paper", "pid"]
    rate: NonNegative
    proportional: NonNegative
    integral: Positive
    window: Steps
    average: Literal["all", "kept", "kept_over_batch"]
    stop_above: Annotated[Number, Field(gt=1)] | None

    @property
    def limit(self) -> float:
        """KL in nats per response above which a training has run away; infinite if none is too high."""
        return math.inf if self.stop_above is None else self.stop_above * self.target


NEUTRAL: Mapping[str, object] = {"critic": "kept", "hard_share": 0.0, "warmup": 0, "rho": 1.0, "of": "return"}


PPO_KEYS = ("responses", "baseline")  # of section `ppo`, which an entry of `methods.ppo` may change too


class RiskParams(Section):
    """The risk measure and its schedule."""

    measure: Literal["none", "cvar", "cvar_ru", "entropic", "evar", "mean_cvar"]
    of: Literal["return", "score"]
    alpha: Share
    warmup: CountOrZero
    rho: Share
    count_from: Literal[0, 1]
    ranking: Literal["episode_return", "lambda_return", "value", "random"]
    dropped: Literal["free", "pay_kl"]
    critic: Literal["kept", "all"]
    hard_share: Annotated[Number, Field(ge=0, lt=1)]
    temperature: Positive
    mix: Annotated[Number, Field(ge=0, le=1)]
    eta: Literal["batch", "running", "plan"] | Number
    eta_rate: Positive


class SampledParams(Section):
    """Answers of the SFT model to prompts of one split."""

    prompts: Count
    samples: Annotated[int, Field(ge=2, le=1_000_000)]


class PlanParams(Section):
    """Answers of the SFT model, from which the attainable and the planned policies are computed."""

    train: SampledParams
    test: SampledParams
    kl: Annotated[list[Positive], Field(min_length=1, max_length=100)]
    batch_size: Batch
    seed: Seed


class FitParams(Section):
    """Weighted likelihood of planned answers, for the methods of `methods.fit`."""

    rounds: Annotated[int, Field(ge=1, le=1000)]
    samples: Annotated[int, Field(ge=1, le=1_000_000)]
    calibrated: bool
    epochs: Epochs
    batch_size: Batch
    micro_batch_size: Batch
    lr: Open01


class GenerateParams(Section):
    """Sampling for the evaluation."""

    samples: Annotated[int, Field(ge=1, le=1_000_000)]
    batch_size: Batch
    seed: Seed


class EvaluateParams(Section):
    """What the evaluation reports."""

    tail_quantile: Open01 | None
    tail_threshold: Number | None
    add_start_token: bool
    confidence: Open01
    bootstrap_draws: Annotated[int, Field(ge=2, le=1_000_000)]
    like_kl: Positive
    like_kl_confidence: Open01
    kl_limit: Annotated[Number, Field(ge=1)]
    table_rows: Annotated[int, Field(ge=0, le=10_000)]
    clusters: Annotated[int, Field(ge=0, le=20)]
    browser_prompts: Annotated[int, Field(ge=0, le=10_000)]
    seed: Seed


class Params(Section):
    """The whole of params.yaml."""

    preset: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    seeds: Annotated[list[Seed], Field(min_length=1, max_length=100)]
    methods: MethodParams
    runtime: RuntimeParams
    data: DataParams
    model: ModelParams
    reward: RewardParams
    prompts: PromptParams
    sft: SFTParams
    ppo: PPOParams
    kl: KLParams
    risk: RiskParams
    plan: PlanParams
    fit: FitParams
    tuning: TuningParams
    decoding: DecodingParams
    head: HeadParams
    generate: GenerateParams
    judge: JudgeParams
    utility: UtilityParams
    evaluate: EvaluateParams

    @property
    def scorers(self) -> list[ScorerParams]:
        """The sections of the scorers that there are: the reward model, and the second one."""
        second = self.judge.second_scorer
        return [self.reward] if second.source == NO_JUDGE else [self.reward, second]

    @property
    def functions(self) -> list[str]:
        """The scorers' sources that are Python functions."""
        return [source for scorer in self.scorers for source in scorer.functions]

    def risk_of(self, method: str) -> RiskParams:
        """Section `risk` with the changes of a method in `methods.ppo` or `methods.fit`.

        If the changes name the measure `none`, the section's other values do not count: plain RLHF stays the same,
        whatever risk is tried.

        Raises: pydantic.ValidationError if a change is no key of the section, or its value is not allowed.
        """
        entry = self.methods.risked[method]
        changes = {key: value for key, value in entry.items() if method in self.methods.fit or key not in PPO_KEYS}
        neutral = NEUTRAL if changes.get("measure") == "none" else {}
        return RiskParams.model_validate({**self.risk.model_dump(), **neutral, **changes})

    def ppo_of(self, method: str) -> PPOParams:
        """Section `ppo` with the changes of a method in `methods.ppo`.

        Raises: pydantic.ValidationError if a value is not allowed.
        """
        changes = self.ppo_changes(method)
        return PPOParams.model_validate({**self.ppo.model_dump(), **changes}) if changes else self.ppo

    def ppo_changes(self, method: str) -> dict[str, Any]:
        """What an entry of `methods.ppo` changes of section `ppo`."""
        return {key: value for key, value in self.methods.ppo[method].items() if key in PPO_KEYS}

    def chosen_of(self, method: str) -> Chosen:
        """The rule or training of a method in `methods.tuned`, `methods.decoded`, `methods.guided` or `methods.headed`.

        Raises: as `chosen`.
        """
        group = self.methods.group_of(method)
        entry = getattr(self.methods, group)[method]
        made = chosen(group, entry, self.tuning if group == "tuned" else self.decoding)
        if isinstance(made.settings, RegularisedParams):
            return made._replace(settings=with_head(made.settings, self.head))
        return made

    def head_of(self, name: str) -> HeadParams:
        """Section `head` with the changes of a head in `methods.heads`.

        Raises: pydantic.ValidationError if a change is no key of the section, or its value is not allowed.
        """
        return HeadParams.model_validate({**self.head.model_dump(), **self.methods.heads[name]})
