"""One run of a comparison: what its params.yaml says, what it measured, and its generations."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from rarlhf.config.errors import UserError
from rarlhf.config.groups import GROUPS
from rarlhf.config.load import load_params
from rarlhf.config.params import Params
from rarlhf.config.refusals import read_yaml
from rarlhf.evaluation.compare_sources import GENERATIONS, JUDGEMENTS, METRICS, PARAMS, Source
from rarlhf.evaluation.comparisons import DEFINITIONS, Evaluation
from rarlhf.evaluation.generations import Generations, read_generations
from rarlhf.evaluation.judgements import SecondOpinions, read_second_opinions


@dataclass(frozen=True)
class MeasuredRun:
    """One run.

    Attributes:
        source: its files.
        values: content of its params.yaml. A former version of the project may have had other keys.
        params: the same; None if the present project does not accept it.
        problem: the first reason for that; else empty.
        evaluation: content of its metrics/evaluate.json; None if there is none.
        methods: that it has, in its order.
        seeds: that it has, in its order.
    """

    source: Source
    values: Mapping[str, Any]
    params: Params | None
    problem: str
    evaluation: Evaluation | None
    methods: Sequence[str]
    seeds: Sequence[int]

    @property
    def name(self) -> str:
        """What the user calls it."""
        return self.source.name

    @property
    def has_generations(self) -> bool:
        """Whether there are generations; otherwise there is an evaluation."""
        return not self.source.lacking

    @property
    def has_judgements(self) -> bool:
        """Whether there is a folder of judgements, current or not."""
        return (self.source.folder / JUDGEMENTS).is_dir()

    @property
    def definitions(self) -> int:
        """Version of the definitions of its numbers."""
        return DEFINITIONS if self.evaluation is None else self.evaluation["definitions"]

    @property
    def kl_target(self) -> float:
        """`kl.target` in nats."""
        return float(self.values["kl"]["target"])

    def table(self, method: str, seeds: Sequence[int]) -> dict[int, Generations]:
        """Its generations of a method by seed.

        Raises: UserError naming the run, if a file is missing or broken.
        """
        folder = self.source.folder / GENERATIONS / method
        try:
            return {seed: read_generations(folder / f"{seed}.jsonl") for seed in seeds}
        except UserError as error:
            raise UserError(f"{self.name}: {error}") from error

    def second_opinions(self, method: str, by_seed: Mapping[int, Generations]) -> SecondOpinions:
        """What its second scorer says of a method's generations.

        Raises: UserError naming the run, if a file is broken.
        """
        try:
            return read_second_opinions(self.source.folder / JUDGEMENTS / method, by_seed)
        except UserError as error:
            raise UserError(f"{self.name}: {error}") from error

    def per_seed(self, method: str, metric: str, seeds: Sequence[int]) -> list[float] | None:
        """A metric of its evaluation, a number for each seed; None where the evaluation has none of them."""
        if self.evaluation is None:
            return None
        spread = self.evaluation["methods"].get(method, {}).get(metric)
        of_seed = dict(zip(self.evaluation["seeds"], spread["per_seed"], strict=True)) if spread else {}
        return [of_seed[seed] for seed in seeds] if of_seed.keys() >= set(seeds) else None


def read_run(source: Source) -> MeasuredRun:
    """Reads a run's params.yaml and metrics/evaluate.json, and looks which methods have generations.

    Raises: UserError in one line if one of the two files is not of this project.
    """
    values = read_yaml(source.folder / PARAMS)
    try:
        methods = values["methods"]
        named = [*methods["start"], *methods["ppo"], *(name for key in GROUPS[1:] for name in methods.get(key, ()))]
        seeds = [int(seed) for seed in values["seeds"]]
        float(values["kl"]["target"])
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(
            f"{PARAMS} of {source.name} does not say its seeds, methods.start, methods.ppo and kl.target, so it is of "
            "no version of this project that can be compared; take a later one"
        ) from None
    evaluation = _evaluation(source)
    if not source.lacking:
        there = [method for method in named if (source.folder / GENERATIONS / method).is_dir()]
    else:
        assert evaluation is not None  # a source has one of the two
        there, seeds = list(evaluation["methods"]), evaluation["seeds"]
    return MeasuredRun(source, values, *_valid(source), evaluation, there, seeds)


def _valid(source: Source) -> tuple[Params | None, str]:
    try:
        return load_params(source.folder / PARAMS), ""
    except UserError as error:
        return None, str(error).splitlines()[1].strip()  # below the file's name


def _evaluation(source: Source) -> Evaluation | None:
    try:
        found = json.loads((source.folder / METRICS).read_text(encoding="utf-8"))
        lengths = {len(spread["per_seed"]) for spreads in found["methods"].values() for spread in spreads.values()}
        kinds = isinstance(found["definitions"], int), isinstance(found["test"], dict), lengths == {len(found["seeds"])}
        whole = all(kinds) and all("kl_sft" in spreads for spreads in found["methods"].values())
    except FileNotFoundError:
        return None
    except (AttributeError, KeyError, TypeError, ValueError):  # ValueError: no JSON
        whole = False
    if not whole:
        raise UserError(
            f"{METRICS} of {source.name} is not what stage `evaluate` writes: run it again (`dvc repro evaluate`)"
        )
    return cast(Evaluation, found)
