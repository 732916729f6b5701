"""A loop of one's own: the page that shows it runs, and a step is the step of `train`."""

import re

import jax
import numpy as np
import optax
import pytest

import medsd_jax
from medsd_jax.adaptation.lora import LoraSettings, lora
from medsd_jax.errors import UserError
from medsd_jax.parallel.mesh import make_mesh, put_batch
from medsd_jax.training.metrics import read_scalars
from medsd_jax.workflows.train import run
from medsd_jax.workflows.train.steps import optimizer_of
from tests.tiny.run import ROOT, quick_compilation, recipe, write_model  # noqa: F401

PAGE = (ROOT / "docs/guides/training_loop.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("loop") / "runs/demo/model"
    write_model(path)
    return path


def batches(count=3, size=8):
    rng = np.random.default_rng(0)
    for _ in range(count):
        images = rng.integers(0, 256, (size, 16, 16, 3), dtype=np.uint8)
        yield images, ["Large left pleural effusion."] * size


def test_the_page_runs_in_fifteen_lines(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder.parents[2])
    loop, adaptations, _ = BLOCKS
    assert len([line for line in loop.splitlines() if line.strip()]) <= 15
    names = {"my_batches": batches()}
    exec(loop, names)
    steps = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [step for step, _ in steps] == ["1", "2", "3"]
    # The untrained U-Net predicts 0, and the noise has variance 1.
    assert abs(float(steps[0][1]) - 1) < 0.1
    before, after = medsd_jax.load(folder).params, medsd_jax.load("my_model").params
    changed = {k.split(".")[0] for k in before if not np.array_equal(before[k], after[k])}
    assert changed == {"unet"}
    exec(adaptations, names)
    assert all("lora_A" in k or "lora_B" in k for k in names["training"].state.trainable)


def test_losses_are_those_of_train(folder, tmp_path, monkeypatch):
    """The same batches and keys: equal to the last bit."""
    config = recipe(
        folder, tmp_path / "data", train__steps=3, validation__every_steps=0,
        preview__every_steps=0,
    )  # fmt: skip
    seen, make_batches = [], run.make_batches

    class Recorder:
        def __init__(self, *args):
            self._inner = make_batches(*args)

        def __next__(self):
            seen.append(next(self._inner))
            return seen[-1]

        def __getattr__(self, name):
            return getattr(self._inner, name)

    monkeypatch.setattr(run, "make_batches", Recorder)
    medsd_jax.train(config, tmp_path / "run")
    _, optimizer = optimizer_of(config)
    training = medsd_jax.prepare_training(
        medsd_jax.load(folder), optimizer, caption_dropout=config.train.caption_dropout,
        ema_decay=config.train.ema_decay,
        mesh=make_mesh(config.mesh.to_dict()),
    )  # fmt: skip
    state, losses = training.state, []
    for batch in seen[:3]:
        state, metrics = training.step(
            state, training.frozen, put_batch(batch, training.mesh), jax.random.key(config.seed)
        )
        losses.append(float(metrics["loss"]))
    assert losses == [row["train/loss"] for row in read_scalars(tmp_path / "run")]
    trained = medsd_jax.load(tmp_path / "run").params
    for name, value in training.model(state).params.items():
        np.testing.assert_array_equal(value, trained[name], err_msg=name)


def test_mistakes(folder):
    model = medsd_jax.load(folder)
    training = medsd_jax.prepare_training(model, optax.sgd(1e-3))
    images = np.zeros((8, 16, 16, 3), np.uint8)
    with pytest.raises(UserError, match=r"float32 \[8, 16, 16, 3\], not uint8"):
        training.batch(images.astype(np.float32), ["x"] * 8)
    with pytest.raises(UserError, match="8 images need as many prompts, not 1"):
        training.batch(images, ["x"])
    with pytest.raises(UserError, match="matches no"):
        medsd_jax.prepare_training(
            model, optax.sgd(1e-3), adaptation=lora(LoraSettings(("nothing",), 2, 2.0))
        )


def test_the_face_is_explicit():
    """Completion shows every name, each has its own docstring, and nothing else is public."""
    assert set(medsd_jax.__all__) <= set(dir(medsd_jax))
    for name in medsd_jax.__all__:
        assert getattr(medsd_jax, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        medsd_jax.lode  # noqa: B018
