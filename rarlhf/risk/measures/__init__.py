"""Risk measures, one file each; a new one is a file, its line in `MEASURES` and its name in `RiskParams.measure`."""

from rarlhf.config.params import RiskParams
from rarlhf.risk.measures.base import RiskMeasure
from rarlhf.risk.measures.cvar import HardSelection
from rarlhf.risk.measures.cvar_ru import RockafellarUryasev
from rarlhf.risk.measures.entropic import Entropic
from rarlhf.risk.measures.evar import EntropicValueAtRisk
from rarlhf.risk.measures.mean_cvar import MeanCVaR
from rarlhf.risk.measures.none import RiskNeutral

MEASURES: dict[str, type[RiskMeasure]] = {
    "none": RiskNeutral,
    "cvar": HardSelection,
    "cvar_ru": RockafellarUryasev,
    "entropic": Entropic,
    "evar": EntropicValueAtRisk,
    "mean_cvar": MeanCVaR,
}


def deciding_values(params: RiskParams) -> dict[str, object]:
    """The values of section `risk` that decide a training with its measure; `critic` is the trainer's."""
    return {key: getattr(params, key) for key in ("measure", "critic", *MEASURES[params.measure].reads)}


def risk_measure(params: RiskParams) -> RiskMeasure:
    """The measure that `risk.measure` names."""
    return MEASURES[params.measure](params)
