"""train.py from the config to the exported model, on phantoms and 8 virtual devices."""

import json

import numpy as np
import pytest
from PIL import Image

from medsd_jax.cli.main import exit_code
from medsd_jax.training.metrics import check_finite, read_scalars
from medsd_jax.workflows.models import load
from medsd_jax.workflows.train.run import train
from tests import commands
from tests.tiny.run import ROOT, quick_compilation, recipe, write_model  # noqa: F401


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """(model folder, data folder), shared by all runs here."""
    model = tmp_path_factory.mktemp("model") / "tiny"
    write_model(model)
    return model, tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def trained(places, tmp_path_factory):
    """The workdir of four steps without a break."""
    workdir = tmp_path_factory.mktemp("runs") / "straight"
    train(recipe(*places), workdir)
    return workdir


def column(workdir, name: str) -> dict[int, float]:
    return {row["step"]: row[name] for row in read_scalars(workdir) if name in row}


def assert_same_weights(one, two):
    one, two = load(one).params, load(two).params
    for name in one.keys() | two.keys():
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def test_what_a_run_leaves_behind(places, trained):
    losses = column(trained, "train/loss")
    assert list(losses) == [1, 2, 3, 4]
    # The untrained U-Net predicts 0, and the noise has variance 1.
    assert abs(losses[1] - 1) < 0.1
    assert list(column(trained, "validation/loss")) == [0, 2, 4]
    assert list((trained / "tensorboard").glob("events.*"))
    assert json.loads((trained / "config.json").read_text())["train"]["steps"] == 4
    (file,) = (trained / "samples").iterdir()
    with Image.open(file) as image:
        assert file.name == "0000004.png" and image.size >= (32, 32)
        assert "lung xray" in str(image.info)

    before, after = load(places[0]), load(trained)
    changed = {k for k in before.params if not np.array_equal(before.params[k], after.params[k])}
    assert {name.split(".")[0] for name in changed} == {"unet"}
    assert len(changed) > 0.9 * sum(name.startswith("unet.") for name in before.params)
    assert before.unet == after.unet and before.scheduler == after.scheduler


def test_resumed_run_is_the_same_to_the_bit(places, trained, tmp_path):
    """Weights, the moving average, the noise, the images' order: two steps and two more."""
    train(recipe(*places, train__steps=2), tmp_path)
    assert list(column(tmp_path, "train/loss")) == [1, 2]
    train(recipe(*places), tmp_path)
    for name in ("train/loss", "train/grad_norm", "train/update_norm", "validation/loss"):
        assert column(tmp_path, name) == column(trained, name), name
    assert_same_weights(tmp_path, trained)


def test_cached_latents_train_the_same(places, trained, tmp_path):
    config = recipe(*places, data__cache_latents=True, preview__every_steps=0)
    train(config, tmp_path)
    (cached,) = places[1].glob("*/latents-train-*.npy")
    assert np.load(cached).shape[1:] == (8, 8, 8)
    # The encoder is compiled alone here and inside the step there: sums may differ in the last bit.
    for name in ("train/loss", "validation/loss"):
        np.testing.assert_allclose(
            list(column(tmp_path, name).values()), list(column(trained, name).values()), rtol=1e-6
        )


def test_validation_loss_depends_on_the_weights_alone(places, trained, tmp_path, monkeypatch):
    """Not on the batch size, the mesh, accumulation or the run's seed."""

    def no_training(*args):  # validation comes first, and is all that is wanted here
        raise RuntimeError("enough")

    monkeypatch.setattr("medsd_jax.data.loader.BatchIterator.__next__", no_training)
    config = recipe(
        *places,
        seed=7,
        train__steps=1,
        data__batch_size=16,
        train__accumulation_steps=4,
        mesh__data=2,
        mesh__tensor=2,
        preview__every_steps=0,
    )
    with pytest.raises(RuntimeError, match="enough"):
        train(config, tmp_path)
    ours, theirs = column(tmp_path, "validation/loss")[0], column(trained, "validation/loss")[0]
    assert ours == pytest.approx(theirs, rel=1e-6)


def test_vae_run(places, tmp_path):
    config = recipe(
        *places, task="vae", vae__measure_scaling_factor=True, optim__learning_rate=1e-2
    )
    train(config, tmp_path)
    rows = read_scalars(tmp_path)
    assert rows[1].keys() >= {"train/loss", "train/l1", "train/kl"}
    assert column(tmp_path, "train/l1")[4] < column(tmp_path, "train/l1")[1]
    assert list(column(tmp_path, "validation/loss")) == [0, 2, 4]
    assert not (tmp_path / "samples").exists()
    before, after = load(places[0]), load(tmp_path)
    changed = {k for k in before.params if not np.array_equal(before.params[k], after.params[k])}
    assert {name.split(".")[0] for name in changed} == {"vae"}
    assert after.vae.scaling_factor != before.vae.scaling_factor
    assert 0.01 < after.vae.scaling_factor < 100


def command(places, workdir, *words):
    argv = [
        f"--config={ROOT / 'configs' / 'base.py'}",
        f"--workdir={workdir}",
        f"--config.model.path={places[0]}",
        f"--config.data.cache_dir={places[1]}",
        "--config.data.num_images=60",
        "--config.data.image_size=16",
        "--config.data.validation_fraction=0.3",
        "--config.train.steps=1",
        *(f"--config.{word}" for word in words),
    ]
    return exit_code(lambda: commands.train(argv))


def test_diverged_run_is_one_line_and_1(places, tmp_path, capsys, monkeypatch):
    def diverge(*args, **kwargs):
        check_finite({"loss": float("nan")}, 3)

    monkeypatch.setattr("medsd_jax.workflows.train.run.train", diverge)
    assert command(places, tmp_path) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("medsd_jax: error: loss is nan at step 3") and "diverged" in line
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("train.steps=0", "train.steps = 0"),
        ("train.stepps=1", "train.steps"),
        ("train.accumulation_steps=3", "data.batch_size = 8"),
        ("train.caption_dropout=1.5", "train.caption_dropout = 1.5"),
        ("train.min_snr_gamma=0.0", "train.min_snr_gamma = 0.0"),
        ("data.batch_size=12", "such as 16"),
        ("data.batch_size=80", "fewer than one batch"),
        ("data.image_size=17", "data.image_size = 17"),
        ("data.source=mimic", "'mimic'"),
        ("data.source=folder", "path"),
        ("data.path=/nowhere", "/nowhere"),
        ("mesh.tensor=3", "mesh.tensor = 3"),
        ("model.dtype=float16", "'float16'"),
        ("model.attention=magic", "'magic'"),
        ("model.path=/nowhere/at/all", "/nowhere/at/all"),
        ("task=diffusoin", "'diffusoin'"),
        ("adaptation.name=lora2", "'lora2'"),
        ("adaptation.train=('^unte',)", "'^unte'"),
        ("adaptation.train=('.',)", "weights of the VAE"),
        ("optim.schedule=step", "'step'"),
        ("optim.warmup_steps=2000", "optim.warmup_steps = 2000"),
        ("optim.learning_rate=nan", "optim.learning_rate = nan"),
        ("optim.b1=1.0", "optim.b1 = 1.0"),
        ("optim.no_decay=('(',)", "optim.no_decay"),
        ("preview.num_steps=1001", "preview.num_steps = 1001"),
        ("preview.sampler=plms", "sampler 'plms' is not one of"),
        ("preview.num_steps=1000", "steps_offset"),
        ("preview.seed=-1", "preview.seed = -1"),
        ("seed=-1", "seed = -1"),
        ("validation.num_images=0", "validation.num_images = 0"),
    ],
)
def test_mistakes_are_one_line_and_2(places, tmp_path, capsys, word, message):
    assert command(places, tmp_path / "run", word) == 2
    captured = capsys.readouterr()
    line = captured.err.splitlines()[-1]
    assert line.startswith("medsd_jax: error: ") and message in line
    assert "Traceback" not in captured.err
    assert not (tmp_path / "run" / "checkpoints").exists()
