"""Stage `judge`: the continuations of all methods, as judges see them that no training saw."""

from contextlib import nullcontext
from pathlib import Path

from tasks.running.stage import Run, stage


@stage
def judge(run: Run, generations: Path, base: Path, reward: Path, second_scorer: Path, out: Path) -> None:
    """Score the continuations by the second scorer, measure them under the language model, and find their toxicity."""
    from rarlhf.config.judging import NO_JUDGE
    from rarlhf.evaluation.generations import read_tables
    from rarlhf.evaluation.judge import Judges
    from rarlhf.evaluation.judgements import EMBEDDINGS, answers_hash, write_embeddings, write_judgement
    from rarlhf.evaluation.language_judge import open_language_judge
    from rarlhf.evaluation.preference import open_chat_judge, preferences
    from rarlhf.evaluation.preferences_file import PREFERENCES, write_preferences
    from rarlhf.messages.progress import progress
    from rarlhf.rewards.scorers import scorer_hash
    from rarlhf.system.machine import prepare

    machine, params = prepare(run.params.runtime), run.params
    tables = read_tables(generations, params.methods.names, params.seeds)
    with_language = params.judge.language_model.source != NO_JUDGE
    opened = open_language_judge(base, params, machine) if with_language else nullcontext()
    asked = params.judge.second_scorer
    settings = f"{asked.label} {asked.output} {asked.sign} {asked.max_length}"  # other settings give other scores
    scorer = f"{settings} {scorer_hash(second_scorer, asked)}" if asked.source != NO_JUDGE else ""
    files = [(method, seed, table) for method, by_seed in tables.items() for seed, table in by_seed.items()]
    with run.output(out) as folder, opened as language, progress("judges", len(files)) as show:
        judges = Judges(reward, second_scorer, language, params, machine)
        for done, (method, seed, table) in enumerate(files, start=1):
            path = folder / method / f"{seed}.safetensors"
            write_judgement(judges(table), path, scorer, answers_hash(table))
            show(done, f"{method} seed {seed}")
        if language is not None:
            write_embeddings(language.embeddings(files[0][2].prompts).double().numpy(), folder / EMBEDDINGS)
        if params.judge.preference.source != NO_JUDGE:
            found = preferences(tables, open_chat_judge(params.judge.preference, machine), params.judge.preference)
            write_preferences(found, tables, folder / PREFERENCES)


if __name__ == "__main__":
    judge()
