"""Everything that stage `evaluate` reads and computes, and the folders and the page that it writes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rarlhf.config.params import EvaluateParams, Params
from rarlhf.decoding.samples import Samples, read_samples
from rarlhf.evaluation.attainable import Prompts, attainable, shares
from rarlhf.evaluation.browser import browser
from rarlhf.evaluation.comparisons import Evaluation, any_table, compare_methods, tail_of
from rarlhf.evaluation.curves import TrainingCurves, cvar_curves, quantile_curves, read_training, write_plot_data
from rarlhf.evaluation.further import with_preferences, with_utility
from rarlhf.evaluation.generations import Tables, read_tables
from rarlhf.evaluation.judgements import read_judgements
from rarlhf.evaluation.perplexity import perplexities_of_methods
from rarlhf.evaluation.pictures import Pictures, draw_pictures
from rarlhf.evaluation.preferences_file import PREFERENCES, read_preferences
from rarlhf.evaluation.report import Origin, Texts, render_report
from rarlhf.evaluation.samples import tail_samples
from rarlhf.messages.progress import Recorder
from rarlhf.system.files import read_jsonl
from rarlhf.system.machine import prepare
from rarlhf.utility.results import read_utility


@dataclass(frozen=True)
class Results:
    """What a run measured.

    Attributes:
        params: of the run.
        tables: generations of every method and seed.
        training: training curves of the methods that PPO trained.
        evaluation: content of metrics/evaluate.json.
        pictures: figures of the report, in reading order.
        second_scorer: content of metrics/second_scorer.json, how well the second scorer separates the classes.
    """

    params: Params
    tables: Tables
    training: TrainingCurves
    evaluation: Evaluation
    pictures: Pictures
    second_scorer: Mapping[str, float]

    def write_plots(self, folder: Path) -> None:
        """Writes the figures and the csv files of `dvc plots`."""
        write_plot_data(folder, quantile_curves(self.tables), cvar_curves(self.tables), self.training)
        for picture in self.pictures.shown.values():
            (folder / f"{picture.name}.png").write_bytes(picture.png)

    def report(self, prompts: Path, origin: Origin) -> str:
        """The report in HTML.

        Args:
            prompts: folder with counts.json, the rows used and dropped.
            origin: where the numbers come from, for the foot.
        """
        chosen, tail = self.params.evaluate, tail_of(self.tables, self.params)
        table = any_table(self.tables)
        texts = Texts(
            samples=tail_samples(self.tables, tail, chosen.table_rows, chosen.seed),
            browser=browser(self.tables, tail, chosen),
            offensive=self.params.data.source != "generator",
            prompts=dict(zip(table.prompt_ids.tolist(), table.prompts, strict=True)),
        )
        counts = json.loads((prompts / "counts.json").read_text(encoding="utf-8"))
        return render_report(self.evaluation, self.pictures, texts, counts, self.params, origin, self.second_scorer)


@dataclass(frozen=True)
class Folders:
    """What an evaluation reads.

    Attributes:
        generations: METHOD/SEED.jsonl.
        prompts: perplexity.jsonl and counts.json.
        models: of all methods.
        curves: METHOD/SEED.csv of the trained methods.
        samples: of SFT to test prompts.
        judgements: METHOD/SEED.safetensors, what the judges say of the generations.
        second_scorer: file of what stage `second_scorer` measured.
        utility: METHOD.json, what stage `utility` measured.
    """

    generations: Path
    prompts: Path
    models: Path
    curves: Path
    samples: Path
    judgements: Path
    second_scorer: Path
    utility: Path


def measure_run(folders: Folders, params: Params, recorder: Recorder) -> Results:
    """Measures the generations and the models of every method, and draws the figures.

    Args:
        folders: what it reads.
        params: all parameters.
        recorder: takes a line for each model.

    Raises: UserError if a file is missing or broken, files do not fit together, or a metric is not finite.
    """
    tables = read_tables(folders.generations, params.methods.names, params.seeds)
    training = read_training(folders.curves, list(params.methods.ppo), params.seeds)
    texts = [row["text"] for row in read_jsonl(folders.prompts / "perplexity.jsonl")]
    perplexities = perplexities_of_methods(folders.models, texts, params, prepare(params.runtime), recorder)
    samples = read_samples(folders.samples)
    compared = compare_methods(tables, perplexities, params, read_judgements(folders.judgements, tables))
    evaluation = with_shares(compared, tables, samples, params.evaluate)
    evaluation = with_utility(evaluation, read_utility(folders.utility, params.methods.names, params.seeds))
    evaluation = with_preferences(evaluation, read_preferences(folders.judgements / PREFERENCES, tables))
    pictures = draw_pictures(tables, training, evaluation, params)
    second_scorer = json.loads(folders.second_scorer.read_text(encoding="utf-8"))
    return Results(params, tables, training, evaluation, pictures, second_scorer)


def with_shares(evaluation: Evaluation, tables: Tables, samples: Samples, params: EvaluateParams) -> Evaluation:
    """The evaluation with each trained method's shares of the attainable among its metrics.

    Args:
        evaluation: of the tables.
        tables: generations of every method and seed.
        samples: of SFT to test prompts.
        params: section `evaluate`.

    Raises: UserError as `attainable` and `shares` of `rarlhf.evaluation.attainable`.
    """
    ids, own = ([row[key] for row in samples.prompts] for key in ("prompt_id", "prompt_score"))
    prompts = Prompts(ids=np.array(ids, dtype=np.int64), scores=np.array(own, dtype=np.float64))
    found, curves = shares(tables, attainable(samples.scores.numpy(), prompts, params), prompts, params)
    methods = {name: {**spreads, **found.get(name, {})} for name, spreads in evaluation["methods"].items()}
    return {**evaluation, "methods": methods, "attainable": curves}
