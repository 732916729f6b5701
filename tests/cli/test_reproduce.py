"""The comparison of all adaptations: its recipes, its claims, its flags; slow: a short run."""

import json
import os
import subprocess
import sys

import pytest

from medsd_jax.cli.flags import load_config
from medsd_jax.cli.main import exit_code, main
from medsd_jax.cli.reproduce_experiments import EXPERIMENTS
from medsd_jax.cli.reproduce_report import findings, in_words
from tests.e2e.tiny_run import ROOT


def row(name, fid, accuracy, ms_ssim=0.5, spread=0.01):
    def estimate(value):
        return {"value": value, "n": 8, "ci95": [value - spread, value + spread]}

    return {
        "name": name, "title": name, "fid": estimate(fid), "prompt_accuracy": estimate(accuracy),
        "ms_ssim": estimate(ms_ssim), "trained_parameters": 3, "seconds": None,
    }  # fmt: skip


def test_every_row_has_its_recipes_and_its_own_name():
    names = [experiment.name for experiment in EXPERIMENTS]
    assert len(set(names)) == len(names) == 8
    for experiment in EXPERIMENTS:
        for recipe in (experiment.recipe or {}).values():
            load_config(ROOT / "configs" / f"{recipe}.py")
        assert experiment.recipe is None or set(experiment.recipe) == {"phantom", "full"}


def test_all_few_shot_rows_see_the_same_ten_pictures():
    settings = []
    for experiment in EXPERIMENTS:
        if experiment.recipe and experiment.encoder != "projected":
            for scale, recipe in experiment.recipe.items():
                config = load_config(ROOT / "configs" / f"{recipe}.py")
                data = config.data.to_dict()
                settings.append((scale, config.few_shot.images_per_prompt, config.few_shot.label,
                                 data["phantom_seed"], data["num_images"]))  # fmt: skip
    assert len(set(settings)) == 2


@pytest.mark.parametrize(
    "one, other, outcome",
    [
        ((2.0, 0.98), (20.0, 0.50), "agrees"),
        ((20.0, 0.50), (2.0, 0.98), "disagrees"),
        ((2.0, 0.50), (2.01, 0.51), "undecided"),
    ],
)
def test_claims_are_held_to_where_the_intervals_part(one, other, outcome):
    rows = [row("base", *other), row("unet_prior", *one)]
    found = findings(rows)
    assert [f["outcome"] for f in found] == [outcome] * 2
    assert "unet_prior" in in_words(rows)


def test_claims_need_both_rows():
    assert findings([row("base", 1.0, 0.5)]) == []


@pytest.mark.parametrize(
    "words, message",
    [
        (["--scale", "phantom", "--model", "m"], "--model is for --scale full"),
        (["--scale", "full", "--model", "m"], "needs --source"),
        (["--scale", "tiny"], "invalid choice"),
        (["--scale", "phantom", "--only", "nothing"], "invalid choice"),
        (["--scale", "phantom", "--num_images", "0"], "at least 1"),
    ],
)
def test_mistakes_are_one_line_and_2(tmp_path, capsys, words, message):
    assert exit_code(lambda: main(["reproduce", "--output", str(tmp_path / "x"), *words])) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("medsd_jax: error: ") and message in line
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_a_short_run_has_all_rows_and_goes_on(tmp_path):
    """In a process of its own: ten pictures cannot be dealt out to the tests' eight devices."""
    words = ["reproduce", "--scale", "phantom", "--output", str(tmp_path), "--train_steps", "2"]
    words += ["--num_images", "8", "--num_steps", "2"]
    command = [sys.executable, "-m", "medsd_jax", *words]
    alone = {k: x for k, x in os.environ.items() if k != "XLA_FLAGS"}

    def results():
        subprocess.run(command, env=alone, cwd=ROOT, check=True)
        return json.loads((tmp_path / "results.json").read_text())

    found = results()
    assert [entry["name"] for entry in found["rows"]] == [e.name for e in EXPERIMENTS]
    trained = {entry["name"]: entry["trained_parameters"] for entry in found["rows"]}
    assert trained["base"] == 0 and trained["textual_inversion"] == 96
    assert trained["lora"] < trained["unet_prior"] < trained["unet_and_text"]
    assert len(found["findings"]) == 7
    assert (tmp_path / "results.html").stat().st_size > 20_000
    assert results() == found  # everything is there already
