import csv
from pathlib import Path

import numpy as np
import pytest

from rarlhf.config.errors import UserError
from rarlhf.evaluation.curves import cvar_curves, quantile_curves, read_training, write_plot_data

HEADER = "iteration,objective/score_mean,risk/score_cvar,objective/kl,objective/kl_coef,risk/kept,other"


def write_run(folder: Path, method: str, seed: int, lines: list[str]) -> None:
    (folder / method).mkdir(parents=True, exist_ok=True)
    (folder / method / f"{seed}.csv").write_text("\n".join([HEADER, *lines]) + "\n", encoding="utf-8")


def test_curves_end_at_the_mean_reward(tables) -> None:
    quantiles, tails = quantile_curves(tables), cvar_curves(tables)
    for method, by_seed in tables.items():
        means = [table.scores.mean() for table in by_seed.values()]
        assert quantiles[method].shape == tails[method].shape == (3, 100)
        assert quantiles[method][:, -1] == pytest.approx(means)
        assert tails[method][:, -1] == pytest.approx(means)
        assert (np.diff(tails[method], axis=1) >= -1e-12).all()


def test_training_is_read_for_the_methods_that_ppo_trained(tmp_path: Path) -> None:
    (tmp_path / "sft.csv").write_text("step,loss,lr\n1,2,3\n")
    for seed in (1, 2):
        write_run(tmp_path, "rlhf", seed, ["1,0.1,-1.5,0.2,1.2,128,9", f"2,0.{seed},-1.4,0.3,1.1,128,9"])
    runs = read_training(tmp_path, ["rlhf"], [1, 2])
    assert list(runs) == ["rlhf"]
    assert runs["rlhf"][2]["score_mean"].tolist() == [0.1, 0.2]
    assert runs["rlhf"][1]["kept"].tolist() == [128, 128]


def test_broken_training_curves_are_refused(tmp_path: Path) -> None:
    write_run(tmp_path, "rlhf", 1, [])
    with pytest.raises(UserError, match=r"rlhf/1.csv has no rows"):
        read_training(tmp_path, ["rlhf"], [1])
    for method in ("rlhf", "cautious"):
        with pytest.raises(UserError, match=rf"{method}/2.csv is missing"):
            read_training(tmp_path, [method], [2])
    write_run(tmp_path, "rlhf", 3, ["1,0.1"])
    with pytest.raises(UserError, match=r"rlhf/3.csv is broken"):
        read_training(tmp_path, ["rlhf"], [3])
    (tmp_path / "rlhf" / "4.csv").write_text("iteration\n1\n")
    with pytest.raises(UserError, match=r"rlhf/4.csv is broken \('objective/score_mean'\)"):
        read_training(tmp_path, ["rlhf"], [4])


def test_runs_of_unlike_length_are_refused(tmp_path: Path) -> None:
    lines = ["1,0.1,-1.5,0.2,1.2,128,9", "2,0.2,-1.4,0.3,1.1,128,9"]
    write_run(tmp_path, "rlhf", 1, lines)
    write_run(tmp_path, "ra_rlhf", 1, lines[:1])
    with pytest.raises(UserError, match=r"ra_rlhf/1.csv has other iterations than rlhf/1.csv: run their stages again"):
        read_training(tmp_path, ["rlhf", "ra_rlhf"], [1])


def test_plot_data_are_flat_files(tmp_path: Path, tables) -> None:
    write_run(tmp_path / "curves", "rlhf", 1, ["1,0.1,-1.5,0.2,1.2,128,9", "2,0.4,-1.4,0.3,1.1,64,9"])
    runs = read_training(tmp_path / "curves", ["rlhf"], [1])
    quantiles = quantile_curves(tables)
    write_plot_data(tmp_path, quantiles, cvar_curves(tables), runs)

    rows = list(csv.DictReader((tmp_path / "reward_quantile.csv").read_text().splitlines()))
    assert list(rows[0]) == ["method", "quantile", "reward", "lowest", "highest"]
    assert [row["method"] for row in rows] == [method for method in tables for _ in range(100)]
    assert (rows[99]["method"], rows[99]["quantile"]) == ("base", "100")
    assert float(rows[99]["reward"]) == quantiles["base"][:, -1].mean()
    assert float(rows[99]["lowest"]) == min(quantiles["base"][:, -1])
    assert float(rows[99]["highest"]) == max(quantiles["base"][:, -1])
    assert (tmp_path / "cvar_curve.csv").read_text().startswith("method,alpha,reward,lowest,highest\nbase,0.01,")
    assert (tmp_path / "training.csv").read_text().splitlines() == [
        "method,seed,iteration,score_mean,score_cvar,kl,kl_coef,kept",
        "rlhf,1,1,0.1,-1.5,0.2,1.2,128.0",
        "rlhf,1,2,0.4,-1.4,0.3,1.1,64.0",
    ]
