"""Few images and prior preservation, from the config to the weights, on 8 virtual devices."""

import numpy as np
import pytest

import medsd_jax
from medsd_jax.cli.main import exit_code
from medsd_jax.sampling.images import read_metadata
from medsd_jax.training.metrics import read_scalars
from medsd_jax.workflows.models import load
from medsd_jax.workflows.train import preview
from medsd_jax.workflows.train.run import train
from tests import commands
from tests.tiny.run import ROOT, quick_compilation, recipe, write_model  # noqa: F401

FEW = {
    "few_shot__images_per_prompt": 4,
    "prior__weight": 0.5,
    "prior__num_images": 20,
    "prior__num_steps": 2,
    "preview__every_steps": 0,
    "train__steps": 2,
    "validation__num_images": 9,
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    model = tmp_path_factory.mktemp("model") / "tiny"
    write_model(model)
    return model, tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def trained(places, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "few"
    train(recipe(*places, **FEW), workdir)
    return workdir


def test_loss_is_that_of_the_data_and_lambda_times_that_of_the_prior(trained):
    for row in read_scalars(trained):
        if "train/loss" in row:
            both = row["train/data_loss"] + 0.5 * row["train/prior_loss"]
            assert row["train/loss"] == pytest.approx(both, rel=1e-6)


def test_prior_is_what_the_base_model_draws(places, trained):
    (folder,) = places[1].glob("prior-*")
    files = sorted(folder.glob("*.png"))
    assert [path.name for path in files] == [f"{i:05d}.png" for i in range(20)]
    metadata = read_metadata(files[3])
    assert metadata["seed"] == 3 and metadata["prompt"] == "A photo of an x-ray"
    model = load(places[0])
    assert metadata["model_hash"] == model.fingerprint()
    drawn = medsd_jax.sample(
        model, metadata["prompt"], seeds=[3], num_steps=2, guidance_scale=4.0, height=16, width=16
    )
    from PIL import Image

    with Image.open(files[3]) as image:
        kept = np.asarray(image)
    # Another batch size is another program: sums may differ in the last bit before rounding.
    assert np.abs(kept.astype(int) - drawn[0]).max() <= 1


def test_prior_is_sampled_once_and_goes_on_where_it_stopped(places, trained, tmp_path, monkeypatch):
    asked = []

    def counted(model, prompts, **settings):
        asked.extend(settings["seeds"])
        return sample(model, prompts, **settings)

    sample = preview.sample_images
    monkeypatch.setattr(preview, "sample_images", counted)
    train(recipe(*places, **FEW), tmp_path / "again")
    assert asked == []
    (folder,) = places[1].glob("prior-*")
    (folder / "00007.png").unlink()
    train(recipe(*places, **FEW), tmp_path / "third")
    assert asked == list(range(20))
    one, two = (load(workdir).params for workdir in (trained, tmp_path / "third"))
    for name, weight in one.items():
        np.testing.assert_array_equal(weight, two[name], err_msg=name)


def test_cached_latents_train_the_same(places, trained, tmp_path):
    train(recipe(*places, data__cache_latents=True, **FEW), tmp_path)
    one, two = (
        [row["train/loss"] for row in read_scalars(workdir) if "train/loss" in row]
        for workdir in (trained, tmp_path)
    )
    # The encoder is compiled alone here and inside the step there.
    np.testing.assert_allclose(one, two, rtol=1e-6)


@pytest.mark.parametrize(
    "words, message",
    [
        (["few_shot.images_per_prompt=50"], "few_shot.images_per_prompt = 50"),
        (["few_shot.images_per_prompt=4", "few_shot.label=hernia"], "hernia = 1"),
        (["few_shot.images_per_prompt=2"], "fewer than one batch of 8"),
        (["prior.weight=-1.0"], "prior.weight = -1.0"),
        (["prior.weight=1.0", "prior.batch_size=3"], "data.batch_size + prior.batch_size = 11"),
        (["prior.weight=1.0", "prior.num_images=4"], "prior.num_images = 4"),
        (["prior.weight=1.0", "prior.prompts=()"], "prior.prompts is empty"),
        (
            [
                "prior.weight=1",
                "few_shot.images_per_prompt=2",
                "prior.prompts=('a photo of a lung XRAY',)",
            ],
            "'a photo of a lung XRAY' is a caption of the training images",
        ),
        (["prior.weight=1.0", "prior.num_steps=1000"], "steps_offset"),
        (["prior.weight=1.0", "train.accumulation_steps=3"], "data.batch_size = 8"),
        (["prior.weight=1.0", "task=vae"], "task = 'diffusion'"),
        (["data.phantom_findings=('hernia',)"], "'hernia'"),
    ],
)
def test_mistakes_are_one_line_and_2(places, tmp_path, capsys, words, message):
    base = [f"model.path={places[0]}", f"data.cache_dir={places[1]}", "data.num_images=60",
            "data.image_size=16", "data.validation_fraction=0.3"]  # fmt: skip
    flags = ["--config", str(ROOT / "configs" / "base.py"), "--workdir", str(tmp_path / "run")]
    flags += [f"--config.{word}" for word in (*base, *words)]
    assert exit_code(lambda: commands.train(flags)) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("medsd_jax: error: ") and message in line
