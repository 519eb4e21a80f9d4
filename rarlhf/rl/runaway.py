"""A training whose KL runs away is stopped, with its last good checkpoint kept."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from rarlhf.config.errors import UserError
from rarlhf.config.params import KLParams

Record = Mapping[str, float]  # numbers of one iteration, by grouped name
PATIENCE = 5  # iterations in a row: one batch may hold an outlier, and the controller needs a few to answer
_RAN_AWAY = (
    "iteration {iteration}: the policy has run away: its KL is {kl:.4g} nats, and has been above {limit:.4g} "
    "(kl.stop_above = {times:g} times kl.target = {target:g}) for {beyond}. Lower ppo.lr or raise kl.coef{controller}. "
    "{kept}"
)


def iterations_beyond(records: Sequence[Record], kl: KLParams) -> int:
    """For how many iterations in a row, the last one included, the KL of all episodes has been above its limit."""
    back = (number for number, record in enumerate(reversed(records)) if record["objective/kl"] <= kl.limit)
    return next(back, len(records))


def stop_runaway(records: Sequence[Record], kl: KLParams, iterations: int, saved: tuple[int, Path] | None) -> None:
    """Ends a training that has run away.

    Args:
        records: of the iterations so far, the oldest first.
        kl: the limit, and what the message names.
        iterations: of the whole training.
        saved: iteration and path of the last checkpoint, or None.
    Raises: UserError if the KL has been above the limit for `PATIENCE` iterations, or is so in the last one of all.
    """
    beyond = iterations_beyond(records, kl)
    if beyond == 0 or (beyond < PATIENCE and records[-1]["iteration"] < iterations):
        return
    line = _RAN_AWAY.format(
        iteration=int(records[-1]["iteration"]),
        kl=records[-1]["objective/kl"],
        limit=kl.limit,
        times=kl.stop_above,
        target=kl.target,
        beyond="one iteration" if beyond == 1 else f"{beyond} iterations in a row",
        controller="" if kl.controller == "pid" else ", or set kl.controller: pid",
        kept=_kept(saved),
    )
    raise UserError(line)


def _kept(saved: tuple[int, Path] | None) -> str:
    if saved is None:
        return "No checkpoint was written before"
    iteration, path = max(saved[0], 0), saved[1]
    return f"The checkpoint of iteration {iteration} is kept ({path}); to start over with other settings, delete it"
