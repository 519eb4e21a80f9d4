"""What a trainer is given, in three records: what is trained and against what, how, and where it runs."""

from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from rarlhf.config.params import KLParams, PPOParams, RiskParams
from rarlhf.data.queries import PlainPrompts
from rarlhf.messages.progress import Recorder
from rarlhf.models.policy import Policy
from rarlhf.models.reference import RefPolicy
from rarlhf.rewards.scorers import Score
from rarlhf.system.distributed import World
from rarlhf.system.machine import Machine


@dataclass(frozen=True)
class Models:
    """What is trained, and against what."""

    policy: Policy
    ref_policy: RefPolicy
    tokenizer: PreTrainedTokenizerBase  # of the policy
    score: Score  # one number per text, higher is better
    plain_prompts: PlainPrompts | None = None  # messages of queries in a chat template; None without a template


@dataclass(frozen=True)
class Recipe:
    """How it is trained."""

    ppo: PPOParams
    kl: KLParams
    risk: RiskParams
    seed: int  # of sampling and order


@dataclass(frozen=True)
class Session:
    """Where it runs, and who is told."""

    machine: Machine  # device and precision
    recorder: Recorder  # takes the numbers of each iteration
    world: World = field(default_factory=World)  # the processes that train together; this one alone by default
