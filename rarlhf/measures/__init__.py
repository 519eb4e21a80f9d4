"""Risk measures, one file each; a new one is a file, its line in `MEASURES` and its name in `RiskParams.measure`."""

from rarlhf.measures.base import RiskMeasure
from rarlhf.measures.cvar import HardSelection
from rarlhf.measures.cvar_ru import RockafellarUryasev
from rarlhf.measures.entropic import Entropic
from rarlhf.measures.evar import EntropicValueAtRisk
from rarlhf.measures.mean_cvar import MeanCVaR
from rarlhf.measures.none import RiskNeutral
from rarlhf.params import RiskParams

MEASURES: dict[str, type[RiskMeasure]] = {
    "none": RiskNeutral,
    "cvar": HardSelection,
    "cvar_ru": RockafellarUryasev,
    "entropic": Entropic,
    "evar": EntropicValueAtRisk,
    "mean_cvar": MeanCVaR,
}


def risk_measure(params: RiskParams) -> RiskMeasure:
    """The measure that `risk.measure` names."""
    return MEASURES[params.measure](params)
