"""`polar scaling fit` on finished grids whose law is known."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import yaml
from support import scaling
from support.commands import refused
from support.runs import run

from polar_rm.errors import Damaged, PolarError
from polar_rm.scaling.fit import fit_grid
from polar_rm.scaling.results import RESULT


def law(runs, exponent=0.05):
    return [0.9 * each.non_embedding**-exponent * each.tokens**-0.03 for each in runs]


def grid(folder, runs=None, *, noise=0.05, **changes):
    runs = runs or scaling.results()
    by_split = {
        "seen": scaling.points(runs, law(runs), noise=noise),
        "other": scaling.points(runs, np.array(law(runs)) * 1.1, noise=noise, seed=1),
    }
    return scaling.finished(folder, by_split, **changes)


def polar(*arguments):
    done = run("scaling", *arguments)
    return done.returncode, done.stdout, done.stderr


def test_a_folder_gives_laws_report_plot_and_predictions(tmp_path):
    config = grid(tmp_path, fit={"resamples": 40, "predict": [{"parameters": 1e9, "tokens": 2e10}, {"flops": 1e21}]})
    code, shown, error = polar("fit", config.output, "--json", tmp_path / "fit.json", "--plot", tmp_path / "fit.svg")
    assert code == 0, error
    report = json.loads((tmp_path / "fit.json").read_text())
    assert report["schema"] == "polar-rm/scaling-fit/1" and report["versions"]["polar-rm"]
    assert len(report["runs"]) == 20 and report["missing"] == [] and report["diverged"] == []
    assert set(report["splits"]) == {"seen", "other"}
    for facts in report["splits"].values():
        assert set(facts["laws"]) == {"parameters", "compute", "joint", "joint_power"}
        assert (facts["prompts"], facts["comparisons"], facts["pairs"]) == (40, 80, 120)
        found = facts["laws"]["joint_power"]
        assert found["parameters"]["a"]["value"] == pytest.approx(0.05, abs=0.01)
        assert found["r_squared"] > 0.98 and len(found["residuals"]) == 20
        [predicted] = found["predictions"]
        truth = 0.9 * 1e9**-0.05 * 2e10**-0.03 * (1.1 if facts is report["splits"]["other"] else 1)
        assert predicted["ci95_prompts"][0] < truth < predicted["ci95_prompts"][1]
        assert predicted["times_beyond"] == pytest.approx(10)  # 1e9 of 1e8 parameters
        assert [len(each["predictions"]) for each in facts["laws"].values()] == [1, 1, 1, 1]
    for expected in ("seen: 120 pairs of 40 prompts", "extrapolation", "compute-efficient frontier", "without the embedding"):
        assert expected in " ".join(shown.split())
    assert (tmp_path / "fit.svg").read_text().startswith("<svg")


@pytest.mark.plots
def test_the_plot_has_a_panel_for_every_law_and_split(tmp_path):
    config = grid(tmp_path, fit={"resamples": 20, "laws": ["parameters", "joint_power"]})
    assert polar("fit", config.output, "--plot", tmp_path / "fit.svg")[0] == 0
    picture = (tmp_path / "fit.svg").read_text()
    for split in ("seen", "other"):
        for formula in ("L = beta N^-a", "L = K N^-a D^-b"):
            assert f"{split}: {formula}" in picture
    assert "15m" in picture and "parameters N" in picture and "tokens D" in picture


def test_a_diverged_run_is_left_out_and_told(tmp_path):
    runs = scaling.results()
    bad = runs[3].name
    runs[3] = replace(runs[3], diverged="the loss of training is nan")
    config = grid(tmp_path, runs, noise=0.0, fit={"resamples": 20, "laws": ["joint_power"], "points": "all"})
    fitted = fit_grid(config)
    assert fitted.report["diverged"] == [{"name": bad, "reason": "the loss of training is nan"}]
    assert any(f"1 runs of the grid diverged and were left out: {bad}" in line for line in fitted.report["warnings"])
    law_of_seen = fitted.report["splits"]["seen"]["laws"]["joint_power"]
    assert bad not in law_of_seen["residuals"] and len(law_of_seen["residuals"]) == 19
    assert law_of_seen["parameters"]["a"]["value"] == pytest.approx(0.05, rel=1e-6)
    _, shown, _ = polar("fit", config.output)
    assert f"diverged, left out: {bad}: the loss of training is nan" in " ".join(shown.split())


def test_what_a_reader_has_to_know_is_a_warning(tmp_path):
    runs = [replace(each, epochs=1.5) if each.size == "1m" else each for each in scaling.results(budgets=(5, 10, 20))]
    losses = np.array(law(runs)) * math.log(2) / max(law(runs))  # the worst run is at ln 2
    by_split = {split: scaling.points(runs, losses) for split in ("seen", "other")}
    fitted = fit_grid(scaling.finished(tmp_path, by_split, fit={"resamples": 20, "laws": ["parameters"]}))
    text = "\n".join(fitted.report["warnings"])
    assert "5 runs of the grid are missing: the laws are of the 15 that have finished" in text
    assert "3 runs repeat data (more than one epoch), the first is 1m-5x-lr0.001-seed0" in text
    assert "seen: 1 runs have not left the plateau at ln 2, the first is 1m-5x-lr0.001-seed0" in text
    assert "learning rate of 50m (0.001, tuned at 5x): the base, not tuned" in text
    assert fitted.report["missing"] == [f"{size}-40x-lr0.001-seed0" for size in scaling.SIZES]


def test_what_can_not_be_fitted_is_one_line(tmp_path):
    refused(polar("fit", tmp_path), f"{tmp_path}: no grid has run here")
    few = grid(tmp_path, scaling.results(sizes=("1m", "5m")), sizes=["1m", "5m"])
    refused(polar("fit", few.output), "the law 'parameters' needs 3 sizes, there are 2")
    refused(polar("fit", few.output, "sizes=[1m, 200m]"), "nothing has run with the size 200m; the sizes here are 1m, 5m")
    refused(polar("fit", few.output, "--plot", "laws.pdf"), "laws.pdf", ".png, .svg")
    none = scaling.config(tmp_path / "none")
    with pytest.raises(PolarError, match="no grid has run here; polar scaling run trains it"):
        fit_grid(none)


@pytest.mark.parametrize("what", ["result", "losses"])
def test_a_damaged_result_is_named(tmp_path, what):
    config = grid(tmp_path)
    folder = config.output / "runs/5m-10x-lr0.001-seed0"
    name = RESULT if what == "result" else "losses-seen.parquet"
    file = folder / name
    content = file.read_bytes()
    file.write_bytes(content.replace(b'"lr": 0.001', b'"lr": 0.002') if what == "result" else content[:-1] + b"x")
    with pytest.raises(Damaged, match=f"5m-10x-lr0.001-seed0/{name}"):
        fit_grid(config)


def test_settings_of_a_grid_are_read_back(tmp_path):
    config = grid(tmp_path)
    values = yaml.safe_load((config.output / "scaling.yaml").read_text())
    assert values["training"] == config.training and values["budgets"]["per_parameter"] == list(scaling.BUDGETS)
