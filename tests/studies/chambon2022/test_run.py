"""The comparison of all adaptations: its recipes, its claims, its flags; slow: a short run."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from medsd_jax.cli.main import exit_code, main
from medsd_jax.config.recipes import load_config
from medsd_jax.evaluation.reports.base import Estimate
from medsd_jax.evaluation.reports.studies import AdaptationRow
from medsd_jax.studies.chambon2022.experiments import (
    BASE_RECIPE,
    EXPERIMENTS,
    Study,
    prompts_of,
    sampling_of,
)
from medsd_jax.studies.chambon2022.parts import PROBE_RECIPE, RECONSTRUCTION_RECIPE
from medsd_jax.studies.chambon2022.report import _ms_ssim, _together, claims, in_words
from tests.tiny.run import ROOT


def row(name, fid, accuracy, ms_ssim=0.5, spread=0.01):
    def estimate(value):
        return Estimate(value, 8, (value - spread, value + spread))

    return AdaptationRow(
        name=name, title=name, paper="", fid=estimate(fid), prompt_accuracy=estimate(accuracy),
        ms_ssim=estimate(ms_ssim), trained_parameters=3, seconds=None, prompts=(), trainings=(),
    )  # fmt: skip


def test_every_row_has_its_recipes_and_its_own_name():
    names = [experiment.name for experiment in EXPERIMENTS]
    assert len(set(names)) == len(names) == 8
    for experiment in EXPERIMENTS:
        for recipe in (experiment.recipe or {}).values():
            load_config(ROOT / "configs" / f"{recipe}.py")
        assert experiment.recipe is None or set(experiment.recipe) == {"phantom", "full"}


def test_all_few_shot_rows_see_the_same_ten_images():
    settings = []
    for experiment in EXPERIMENTS:
        if experiment.recipe and experiment.encoder != "projected":
            for scale, recipe in experiment.recipe.items():
                config = load_config(ROOT / "configs" / f"{recipe}.py")
                data = config.data.to_dict()
                settings.append((scale, config.few_shot.images_per_prompt, config.few_shot.label,
                                 data["phantom_seed"], data["num_images"]))  # fmt: skip
    assert len(set(settings)) == 2


def test_groups_of_the_same_noises_are_one_draw():
    """A second prompt whose images are those of the first tells nothing new."""
    rng = np.random.default_rng(0)
    # Each group of four is alike by a degree of its own.
    images = [
        (rng.integers(0, 256, (64, 64, 3)) * (i // 4) / 12 + 40).astype(np.uint8)
        for i in range(48)
    ]  # fmt: skip
    once, twice = _ms_ssim({"a": images}), _ms_ssim({"a": images, "b": images})
    assert twice.n == once.n == 12
    np.testing.assert_allclose(twice.ci95, once.ci95, rtol=1e-5)
    assert once.ci95[0] < once.value < once.ci95[1]
    assert _ms_ssim({"a": images[:4], "b": images[4:8]}).n == 2


def test_rows_sample_by_the_base_model_s_recipe_and_the_flags():
    full, phantom = (
        Study(scale, output=ROOT, source="s", num_steps=7) for scale in ("full", "phantom")
    )
    assert (sampling_of(full).sampler, sampling_of(phantom).sampler) == ("pndm", "ddim")
    assert sampling_of(full).num_steps == sampling_of(phantom).num_steps == 7
    assert sampling_of(full).same_seeds and sampling_of(phantom).same_seeds  # pairs
    by_name = {experiment.name: experiment for experiment in EXPERIMENTS}
    prompts = {name: prompts_of(full, experiment) for name, experiment in by_name.items()}
    word = prompts.pop("textual_inversion")
    assert set(prompts.values()) == {prompts_of(full)}  # all but the new word's
    assert all("<" in prompt for prompt in word)


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
    result = claims(rows)
    assert [f.result for f in result] == [outcome] * 2
    assert "unet_prior" in in_words(rows)


def test_claims_need_both_rows():
    assert claims([row("base", 1.0, 0.5)]) == ()


def test_several_trainings_make_one_row():
    """The mean, and from the lowest to the highest end of the intervals."""
    estimates = [row("a", fid, 0.5).fid for fid in (1.0, 3.0, 2.0)]
    assert _together(estimates) == Estimate(2.0, 24, (0.99, 3.01))
    assert _together(estimates[:1]) == estimates[0]


def test_a_comparison_goes_on_with_its_own_settings_alone(tmp_path, capsys, monkeypatch):
    """Finished rows are kept: other settings would stand over numbers that are not theirs."""

    class Begun(Exception):
        """The comparison goes on."""

    def begin(study):
        raise Begun

    monkeypatch.setattr("medsd_jax.studies.chambon2022.materials.make_materials", begin)
    words = ["reproduce", "--scale", "phantom", "--output", str(tmp_path / "x")]
    for same in ([], ["--seeds", "2"], ["--only", "lora"], ["--num_steps", "50"]):
        with pytest.raises(Begun):
            main([*words, *same])
    for other, message in (
        (["--sampler", "pndm"], "was begun with sampler = ddim, not pndm"),
        (["--train_steps", "3"], "was begun with train_steps = None, not 3"),
    ):
        assert exit_code(lambda other=other: main([*words, *other])) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
    (tmp_path / "x" / "settings.json").unlink()
    (tmp_path / "x" / "base").mkdir()
    assert exit_code(lambda: main(words)) == 2
    assert "no comparison that can go on" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "words, message",
    [
        (["--scale", "phantom", "--model", "m"], "model is for scale full"),
        (["--scale", "full", "--model", "m"], "needs source"),
        (["--scale", "tiny"], "invalid choice"),
        (["--scale", "phantom", "--only", "nothing"], "invalid choice"),
        (["--scale", "phantom", "--num_images", "0"], "at least 1"),
        (["--scale", "phantom", "--guidance_scale", "inf"], "guidance_scale = inf"),
        (["--scale", "phantom", "--configs", "absent"], "absent is no folder"),
    ],
)
def test_mistakes_are_one_line_and_2(tmp_path, capsys, words, message):
    assert exit_code(lambda: main(["reproduce", "--output", str(tmp_path / "x"), *words])) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("medsd_jax: error: ") and message in line
    assert not (tmp_path / "x").exists()


def reproduce(output, *words):
    """A short run in a process of its own: ten images cannot be dealt out to eight devices."""
    words = ["reproduce", "--output", str(output), *words, "--train_steps", "2"]
    command = [sys.executable, "-m", "medsd_jax", *words, "--num_images", "8", "--num_steps", "2"]
    alone = {k: x for k, x in os.environ.items() if k != "XLA_FLAGS"}
    subprocess.run(command, env=alone, cwd=ROOT, check=True)
    return json.loads((output / "results.json").read_text())


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    """What --scale phantom leaves after a few steps, and its results."""
    output = tmp_path_factory.mktemp("phantom")
    return output, reproduce(output, "--scale", "phantom")


@pytest.mark.slow
def test_a_short_run_has_all_rows_and_goes_on(short_run):
    output, result = short_run
    assert [entry["name"] for entry in result["rows"]] == [e.name for e in EXPERIMENTS]
    trained = {entry["name"]: entry["trained_parameters"] for entry in result["rows"]}
    assert trained["base"] == 0 and trained["textual_inversion"] == 96
    assert trained["lora"] < trained["unet_prior"] < trained["unet_and_text"]
    assert len(result["claims"]) == 9
    assert result["autoencoder"]["num_images"] == 512
    probed = {entry["name"]: entry for entry in result["text_encoders"]["encoders"]}
    assert list(probed) == ["base", "in_domain", "unet_and_text", "bert"]
    assert probed["bert"]["architecture"] == "Bert" and probed["base"]["auroc"]["value"] > 0.9
    assert (output / "results.html").stat().st_size > 20_000
    assert reproduce(output, "--scale", "phantom") == result  # everything is there already
    again = reproduce(output, "--scale", "phantom", "--only", "text_projection", "--seeds", "2")
    assert [entry["name"] for entry in again["rows"]] == [e.name for e in EXPERIMENTS]
    first, second = again["rows"][1]["trainings"]
    assert first == result["rows"][1]["trainings"][0]
    assert (first["seed"], second["seed"]) == (0, 1) and first["fid"] != second["fid"]
    assert [len(entry["trainings"]) for entry in again["rows"]] == [1, 2, 1, 1, 1, 1, 1, 1]
    assert again["rows"][2:] == result["rows"][2:]


SMALL = """
from medsd_jax.config.recipes import load_config

def get_config():
    config = load_config("{name}")
    config.model.dtype = "float32"
    config.data.image_size = 64
    if "prior" in config:
        config.prior.num_images, config.prior.num_steps = 8, 2
        config.validation.every_steps = config.preview.every_steps = 0
    else:
        config.data.batch_size, config.data.validation_fraction = 16, 0.2
    return config
"""
MEASURING = """
from medsd_jax.config.recipes import load_config

def get_config():
    config = load_config("{name}")
    if "image_size" in config:
        config.image_size = 64
    return config
"""


@pytest.mark.slow
def test_full_scale_runs_on_a_small_model(short_run, tmp_path):
    """The recipes of the papers' scale as they are, but for images of 64 pixels in float32."""
    from medsd_jax.data.phantoms.phantom import phantom_records
    from medsd_jax.data.sources.folder import write_image_folder

    phantom, _ = short_run
    recipes, images = tmp_path / "configs", tmp_path / "images"
    recipes.mkdir()
    full = {e.recipe["full"] for e in EXPERIMENTS if e.recipe}
    for name in full:
        (recipes / f"{name}.py").write_text(SMALL.format(name=name))
    for names in (BASE_RECIPE, RECONSTRUCTION_RECIPE, PROBE_RECIPE):
        name = names["full"]
        (recipes / f"{name}.py").write_text(MEASURING.format(name=name))
    write_image_folder(phantom_records(300, seed=5), images, progress=False)
    result = reproduce(
        tmp_path / "run", "--scale", "full", "--configs", str(recipes),
        "--model", str(phantom / "base"), "--encoder", str(phantom / "encoder"),
        "--source", "folder", "--path", str(images), "--real", str(phantom / "real"),
        "--classifier", str(phantom / "classifier"),
        "--features", f"classifier={phantom / 'classifier'}",
    )  # fmt: skip
    assert [entry["name"] for entry in result["rows"]] == [e.name for e in EXPERIMENTS]
    assert result["sampler"] == "pndm" and result["base_model"] == str(phantom / "base")
    learnt = tmp_path / "run" / "text_projection" / "config.json"
    assert json.loads(learnt.read_text())["data"]["path"] == str(images)
