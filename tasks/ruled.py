"""What stages `generate_decoded`, `generate_guided` and `generate_headed` share: a model decoded by a rule."""

from pathlib import Path
from typing import TYPE_CHECKING

from tasks.continuations import Places, of_seed, write_continuations
from tasks.running.stage import Run

if TYPE_CHECKING:
    from rarlhf.data.prompts import Query
    from rarlhf.decoding.rules import DecodingRule
    from rarlhf.decoding.scored import ScoredContinuations
    from rarlhf.models.reference import RefPolicy


def write_ruled(  # noqa: PLR0913, PLR0917, each is a different thing
    run: Run,
    method: str,
    settings: Path,
    places: Places,
    experts: tuple[Path, Path] | None = None,
    head: Path | None = None,
) -> None:
    """As `write_continuations`, of a model that is decoded by a rule.

    Args:
        run: of the stage.
        method: name of the method.
        settings: file of the rule's settings, which stage `plan` writes.
        places: folders.
        experts: folders of the expert and the anti-expert; None for a rule that reads none.
        head: folder of a head for each seed; None for a rule that reads none.
    """
    from rarlhf.decoding.choice import Parts, build_rule
    from rarlhf.decoding.headed import open_headed
    from rarlhf.risk.planned import read_settings

    chosen = read_settings(run.params.chosen_of(method), settings)

    def ruled(
        continuations: "ScoredContinuations", policy: "RefPolicy", queries: "list[Query]", seed: int
    ) -> "DecodingRule":
        parts = Parts(continuations.tokenizer, policy, continuations.scores_of(queries))
        if experts is not None:
            expert, anti_expert = (continuations.open(of_seed(folder, seed)) for folder in experts)
            parts = parts._replace(expert=expert, anti_expert=anti_expert)
        if head is not None:
            headed = open_headed(of_seed(head, seed), continuations.sft, continuations.sampling.temperature)
            parts = parts._replace(headed=headed)
        return build_rule(chosen, parts)

    write_continuations(run, method, places, ruled)
