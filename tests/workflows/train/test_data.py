"""What a run reads where there are hardly any images: it says how to train on them, and does."""

import jax
import numpy as np
import pytest
from PIL import Image

from medsd_jax.errors import UserError
from medsd_jax.parallel.mesh import make_mesh
from medsd_jax.workflows.train import data as train_data
from medsd_jax.workflows.train.data import make_batches, make_validation, open_training_data
from tests.tiny.pipeline import SIZE, tiny_pipeline
from tests.tiny.run import recipe


@pytest.fixture
def few(tmp_path):
    """A folder of `count` images of `patients` patients, as a recipe; and the rest of a run."""
    mesh = make_mesh({"data": 1}, jax.devices()[:1])

    def make(count, patients, **changes):
        folder = tmp_path / "images"
        folder.mkdir()
        rows = ["file_name,text,patient_id"]
        for i in range(count):
            Image.fromarray(np.full((SIZE, SIZE), 40 * (i + 1), np.uint8)).save(folder / f"{i}.png")
            rows.append(f"{i}.png,image {i},p{i % patients}")
        (folder / "metadata.csv").write_text("\n".join(rows) + "\n")
        config = recipe(
            "unread", tmp_path / "cache", data__source="folder", data__path=str(folder),
            data__batch_size=1, data__image_size=SIZE, data__validation_fraction=0.1, **changes,
        )  # fmt: skip
        return config, tiny_pipeline(), open_training_data(config, tmp_path), mesh

    return make


@pytest.mark.parametrize("count", [1, 2])
def test_images_of_one_patient_train_without_validation(few, tmp_path, count):
    config, model, dataset, mesh = few(count, 1, validation__every_steps=10)
    with pytest.raises(UserError) as refused:
        make_validation(config, model, dataset, mesh)
    message = str(refused.value)
    assert "train without it by validation.every_steps=0" in message and "\n" not in message
    assert "one patient cannot be in both splits" in message

    with config.unlocked():
        config.validation.every_steps = 0
    assert make_validation(config, model, dataset, mesh) is None
    batches = make_batches(config, model, dataset, tmp_path, mesh)
    seen = {int(next(batches)["images"].mean()) for _ in range(2)}
    batches.close()
    assert seen == {40 * (i + 1) for i in range(count)}


def test_a_batch_larger_than_the_set_says_what_fits(few, tmp_path):
    config, model, dataset, mesh = few(3, 3, validation__every_steps=0)
    with config.unlocked():
        config.data.batch_size = 8
    with pytest.raises(UserError, match="train has 2 images, fewer than one batch of 8: lower its"):
        make_batches(config, model, dataset, tmp_path, mesh)


def test_all_that_asks_for_validation_is_named(few):
    config, model, dataset, mesh = few(
        1, 1, task="vae", vae__measure_scaling_factor=True, validation__every_steps=10
    )
    with pytest.raises(UserError) as refused:
        make_validation(config, model, dataset, mesh)
    message = str(refused.value)
    assert "validation.every_steps=0 and vae.measure_scaling_factor=False" in message


@pytest.mark.parametrize("cache_latents", [False, True])
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_batches_are_what_the_plan_compiles_for(few, tmp_path, monkeypatch, weight, cache_latents):
    """Names, shapes and kinds; and the prior's rows are marked, whatever is cached."""
    config, model, dataset, mesh = few(
        4, 4, validation__every_steps=0, data__cache_latents=cache_latents, prior__weight=weight
    )
    with config.unlocked():
        config.data.batch_size, config.prior.batch_size = 3, 2
    drawn = dataset.train.select([0, 1], "prior")
    monkeypatch.setattr(train_data, "prior_images", lambda *_: (drawn, tmp_path))
    batches = train_data.make_batches(config, model, dataset, tmp_path, mesh)
    batch = next(batches)
    batches.close()
    size = train_data.optimizer_batch(config)
    shapes = train_data.batch_shapes(config, model, size, batch["prompt_ids"].shape[1])
    assert {k: (x.shape, x.dtype) for k, x in batch.items()} == {
        k: (x.shape, x.dtype) for k, x in shapes.items()
    }
    assert (len(batch["prompt_ids"]), "is_prior" in batch) == ((5, True) if weight else (3, False))
    if weight:
        np.testing.assert_array_equal(batch["is_prior"], np.float32([0, 0, 0, 1, 1]))
