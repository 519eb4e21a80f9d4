"""The figures of the report with their captions: which there are, in which order, and how to read each."""

from collections.abc import Mapping
from dataclasses import dataclass

from rarlhf.config.methods import colours_of
from rarlhf.config.params import Params
from rarlhf.evaluation import figures
from rarlhf.evaluation.comparisons import Evaluation
from rarlhf.evaluation.critical import critical_prompts_figure
from rarlhf.evaluation.curves import TrainingCurves, cvar_curves, quantile_curves
from rarlhf.evaluation.findings import MARK
from rarlhf.evaluation.forest import differences, shares
from rarlhf.evaluation.generations import FloatArray, Tables, stacked
from rarlhf.evaluation.svg import Styles, inline_svg
from rarlhf.evaluation.trade_off import trade_off

CAPTIONS: Mapping[str, tuple[str, str]] = {
    "trade_off": (
        "Reward against KL",
        "Dots are seeds, discs their mean, the dotted line is the KL target. The dashed curve is the best that any "
        "policy of that KL could have, found without training from weighted samples of the SFT model; crosses are the "
        "best of n of the same samples. Further up is better; further right is further from the SFT model. An arrow at "
        "the right edge is a method beyond it, with its KL. Compare two methods only where their dots are at the "
        "same KL.",
    ),
    "differences": (
        "Differences to RLHF",
        "Each method less RLHF on the same seeds and prompts: the mean, its interval, and below it a dot for each "
        "seed. An interval that does not cross the dashed line at 0 leaves out zero. Grey with "
        f"{MARK}: not at like KL, so the difference alone does not show which method is better.",
    ),
    "reward_quantile": (
        "Reward by prompt difficulty",
        "Mean reward over the first x % of the test prompts, those with the lowest score of their own first (the "
        "paper's curve). The left end is the prompt tail, the right end the mean. Lines: mean over seeds; bands: "
        "lowest and highest seed.",
    ),
    "cvar_curve": (
        "Outcome CVaR",
        "Mean of the worst alpha % of all continuations, whatever their prompt. It rises to the mean reward at 100 %. "
        "A line that is ahead far to the left prevents rare failures. Lines: mean over seeds; bands: lowest and "
        "highest seed.",
    ),
    "reward_distribution": (
        "Shift of the reward distribution",
        "Rewards of all continuations of all seeds, the base model in grey. Shaded: below the 10 % quantile (VaR); "
        "dashed: the mean of that tail (CVaR). Both are means over seeds, as in the table.",
    ),
    "share": (
        "Share of the attainable",
        "A method's rise over SFT, divided by the rise that the best policy of the same KL would have: mean, interval "
        "over seeds, and below it a dot for each seed. At 100 % nothing more was possible at that KL. The prompt "
        "tail is that of the policy with the best CVaR, so a method can be beyond 100 % there.",
    ),
    "critical_prompts": (
        "Critical prompts",
        "The prompt tail in groups of similar prompts. Left: each prompt's place in the plane of the two largest "
        "principal components of its embedding. Right: what each method gained over SFT in each group; marks are "
        "means over seeds, dots are seeds. A method that gains in one group alone has not mended the tail.",
    ),
    "kl_by_decile": (
        "Where the KL was spent",
        "Mean KL of the answers to each tenth of the test prompts, those with the lowest score of their own first. "
        "Lines: mean over seeds; bands: lowest and highest seed.",
    ),
    "training": (
        "Training",
        "Per iteration, over the training prompts of that batch. KL should stay at its target. The episodes kept "
        "follow the risk schedule. The CVaR is the mean of the worst 10 % of the whole batch's scores, for every "
        "method alike. Lines: mean over seeds; bands: lowest and highest seed.",
    ),
}


@dataclass(frozen=True)
class Picture:
    """A figure of the report.

    Attributes:
        name: of its file in plots/, without suffix.
        title: its heading.
        caption: how to read it.
        text: what it shows, for those who do not see it.
        png: all panels in one picture.
        panels: each as an SVG element.
    """

    name: str
    title: str
    caption: str
    text: str
    png: bytes
    panels: tuple[str, ...]


@dataclass(frozen=True)
class Pictures:
    """The figures of a report, in reading order, and the rules of their classes."""

    shown: Mapping[str, Picture]
    sheet: str


def draw_pictures(tables: Tables, training: TrainingCurves, evaluation: Evaluation, params: Params) -> Pictures:
    """Every figure of the report, without those of which nothing was measured."""
    colours = colours_of(tables)
    drawn = {
        "trade_off": trade_off(evaluation, colours),
        "differences": differences(evaluation, colours),
        "reward_quantile": figures.reward_quantiles(quantile_curves(tables), colours),
        "cvar_curve": figures.outcome_cvar(cvar_curves(tables), colours),
        "reward_distribution": figures.reward_distribution(rewards_by_seed(tables), colours),
        "share": shares(evaluation, colours),
        "critical_prompts": critical_prompts_figure(evaluation, colours),
        "kl_by_decile": figures.kl_by_decile(evaluation, colours),
        "training": figures.training_curves(training, colours, params.kl.target),
    }
    # Where methods share a colour, the first one's property serves all of them.
    styles = Styles({colour: f"--method-{method}" for method, colour in reversed(colours.items())})
    shown = {name: _picture(name, drawing, styles) for name, drawing in drawn.items() if drawing is not None}
    return Pictures(shown, styles.sheet())


def _picture(name: str, drawing: figures.Drawing, styles: Styles) -> Picture:
    title, caption = CAPTIONS[name]
    parts = drawing.parts()
    texts = [f"{title}. {drawing.text}", *(f"{title}, panel {number}." for number in range(2, 1 + len(parts)))]
    panels = (
        inline_svg(part, f"{name}-{number}", text, styles)
        for number, (part, text) in enumerate(zip(parts, texts, strict=True))
    )
    return Picture(name, title, caption, drawing.text, figures.png(drawing.figure()), tuple(panels))


def rewards_by_seed(tables: Tables) -> dict[str, FloatArray]:
    """Method -> (S, P k) rewards of all prompts and samples."""
    stacks = {method: stacked(by_seed, "scores") for method, by_seed in tables.items()}
    return {method: scores.reshape(len(scores), -1) for method, scores in stacks.items()}
