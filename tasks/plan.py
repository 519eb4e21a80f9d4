"""Stage `plan`: what decides each trained method's risk, with its plan, and what is attainable at each KL."""

from pathlib import Path

from tasks.running.stage import Run, stage


@stage
def plan(run: Run, samples: Path, out: Path) -> None:
    """Plan each method that needs it on the SFT model's answers to training prompts, and draw the frontier."""
    from rarlhf.config.methods import methods_of
    from rarlhf.decoding.samples import read_samples
    from rarlhf.evaluation.figures import png
    from rarlhf.evaluation.plans import frontier_figure, frontier_table, plan_table
    from rarlhf.risk.plan import Answers, caution, frontier, reference
    from rarlhf.risk.planned import method_values, plans_of, written
    from rarlhf.system.files import write_json

    risk, target = run.params.risk, run.params.kl.target
    answers = Answers(read_samples(samples).scores.double().numpy())
    trained = [method for method in methods_of(run.params) if method.risk is not None]
    plans = plans_of(trained, answers, target)
    start, rows = reference(answers, risk.alpha), frontier(answers, risk.alpha, run.params.plan.kl)
    picture = png(frontier_figure(start, rows, plans, risk.alpha))
    with run.output(out) as folder:
        (folder / "methods").mkdir()
        for method in trained:
            planned = {"plan": written(plans[method.name])} if method.name in plans else {}
            write_json(folder / "methods" / f"{method.name}.json", {**method_values(method), **planned})
        write_json(folder / "frontier.json", frontier_table(start, rows, plans, risk.alpha))
        (folder / "frontier.png").write_bytes(picture)
        run.tracker.artifact(folder / "frontier.png")
    for line in filter(None, (caution(name, planned) for name, planned in plans.items())):
        run.log(f"warning: {line}")
    run.log(plan_table(start, plans))


if __name__ == "__main__":
    plan()
