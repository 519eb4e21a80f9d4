"""What stages `generate_decoded` and `generate_guided` share: a model that is decoded by a rule."""

from pathlib import Path
from typing import TYPE_CHECKING

from tasks.continuations import Places, of_seed, write_continuations
from tasks.running.stage import Run

if TYPE_CHECKING:
    from rarlhf.data.prompts import Query
    from rarlhf.decoding.rules import DecodingRule
    from rarlhf.decoding.scored import ScoredContinuations
    from rarlhf.models.reference import RefPolicy


def write_ruled(run: Run, method: str, settings: Path, places: Places, experts: tuple[Path, Path] | None) -> None:
    """As `write_continuations`, of a model that is decoded by a rule.

    Args:
        run: of the stage.
        method: name of the method.
        settings: file of the rule's settings, which stage `plan` writes.
        places: folders.
        experts: folders of the expert and the anti-expert; None for a rule that reads none.
    """
    from rarlhf.decoding.choice import Parts, build_rule
    from rarlhf.risk.planned import read_settings

    chosen = read_settings(run.params.chosen_of(method), settings)

    def ruled(
        continuations: "ScoredContinuations", policy: "RefPolicy", queries: "list[Query]", seed: int
    ) -> "DecodingRule":
        opened = [continuations.open(of_seed(folder, seed)) for folder in experts or ()]
        parts = Parts(continuations.tokenizer, policy, continuations.scores_of(queries), *opened)
        return build_rule(chosen, parts)

    write_continuations(run, method, places, ruled)
