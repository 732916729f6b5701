"""load, sample and save, as a notebook calls them."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import medsd_jax
from medsd_jax.errors import UserError
from medsd_jax.parallel.mesh import make_mesh
from medsd_jax.workflows.sample import _CELLS_PER_SHARD, _batch_size
from tests.tiny.pipeline import SIZE, tiny_pipeline

PROMPTS = ["effusion", "clear", "nodule"]
SETTINGS = {"seeds": [1, 2, 3], "num_steps": 4, "progress": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("api") / "model"
    medsd_jax.save(tiny_pipeline(), path)
    return path


@pytest.fixture(scope="module")
def images(folder):
    """The first cells of a notebook."""
    model = medsd_jax.load(folder)
    return medsd_jax.sample(model, PROMPTS, mesh=make_mesh({}, jax.devices()[:1]), **SETTINGS)


def test_load_and_sample(images):
    assert images.shape == (3, SIZE, SIZE, 3)
    assert images.dtype == np.uint8
    assert images.std() > 30 and (images[0] != images[1]).any()


def test_a_mesh_of_data_and_fsdp_gives_the_same_images(folder, images):
    mesh = make_mesh({"data": 2, "fsdp": 4})
    model = medsd_jax.place(medsd_jax.load(folder), mesh)
    kernel = model.params["unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 4  # spread, not copied
    sharded = medsd_jax.sample(model, PROMPTS, mesh=mesh, **SETTINGS)
    # Sums are split over devices: a value may round to the neighbouring level.
    assert np.abs(sharded.astype(int) - images.astype(int)).max() <= 1
    assert (sharded != images).mean() < 0.01


def test_all_devices_by_default(folder, images):
    """Three images on eight devices: no mesh, no batch size to think of."""
    everywhere = medsd_jax.sample(medsd_jax.load(folder), PROMPTS, **SETTINGS)
    assert np.abs(everywhere.astype(int) - images.astype(int)).max() <= 1


def test_one_prompt_without_a_list(folder):
    model = medsd_jax.load(folder)
    mesh = make_mesh({}, jax.devices()[:1])
    settings = {"mesh": mesh, "num_steps": 2, "batch_size": 3, "progress": False}
    image = medsd_jax.sample(model, "effusion", **settings)
    assert image.shape == (1, SIZE, SIZE, 3)
    assert (image == medsd_jax.sample(model, ["effusion"], seeds=[0], **settings)).all()


def test_change_a_weight_and_save(folder, tmp_path, images):
    """Frozen dataclasses and plain dicts: an edit makes a new model and leaves the old one."""
    model = medsd_jax.load(folder)
    params = {**model.params, "unet.conv_out.bias": model.params["unet.conv_out.bias"] + 1}
    medsd_jax.save(dataclasses.replace(model, params=params), tmp_path / "edited")
    edited = medsd_jax.load(tmp_path / "edited")
    assert (edited.params["unet.conv_out.bias"] == params["unet.conv_out.bias"]).all()
    assert edited.fingerprint() != model.fingerprint()
    mesh = make_mesh({}, jax.devices()[:1])
    assert (medsd_jax.sample(edited, PROMPTS, mesh=mesh, **SETTINGS) != images).any()
    assert (medsd_jax.sample(model, PROMPTS, mesh=mesh, **SETTINGS) == images).all()


@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 1, "fsdp": 8}])
def test_a_placed_model_is_saved_bit_by_bit(folder, tmp_path, axes):
    placed = medsd_jax.place(medsd_jax.load(folder), make_mesh(axes))
    medsd_jax.save(placed, tmp_path / "again")
    for path in folder.rglob("*.safetensors"):
        old, new = load_file(path), load_file(tmp_path / "again" / path.relative_to(folder))
        assert old.keys() == new.keys()
        for name in old:
            assert old[name].tobytes() == new[name].tobytes(), name


def test_bfloat16_computes_nearly_the_same(folder, images):
    """The dtype of the computation; the weights stay float32."""
    mesh = make_mesh({}, jax.devices()[:1])
    rough = medsd_jax.sample(
        medsd_jax.load(folder), PROMPTS, mesh=mesh, dtype="bfloat16", **SETTINGS
    )
    difference = np.abs(rough.astype(int) - images.astype(int)).mean()
    # bfloat16 has 8 bits: over 4 guided steps of a random network some levels of 255 are right.
    assert 0 < difference < 10


def test_clip_sample_of_the_file_is_for_pixels_and_not_for_latents():
    """StableDiffusionPipeline switches it off too; the file keeps what it says."""
    model = tiny_pipeline()
    clipping = dataclasses.replace(model, scheduler={**model.scheduler, "clip_sample": True})
    assert medsd_jax.workflows.sample.schedule_of(
        clipping
    ) == medsd_jax.workflows.sample.schedule_of(model)
    assert medsd_jax.workflows.sample.schedule_of(clipping).clip_range is None


def test_mistakes_are_user_errors(folder, tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        medsd_jax.load(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not overwritten"):
        medsd_jax.save(medsd_jax.load(folder), tmp_path)
    index = folder / "model_index.json"
    assert json.loads(index.read_text())["_class_name"] == "StableDiffusionPipeline"
    with pytest.raises(AttributeError, match="smaple"):
        medsd_jax.smaple  # noqa: B018


@pytest.mark.parametrize(
    ("n", "size"),
    [(1, 8), (8, 8), (9, 16), (64, 64), (65, 40), (76, 40), (129, 48)],
)
def test_batches_are_equal_and_waste_little(n, size):
    """8 devices with room for 8 images each: 65 images are two batches of 40, not of 64."""
    shape = SimpleNamespace(latents=(32, _CELLS_PER_SHARD // (8 * 32), 4))
    assert _batch_size(None, n, shape, make_mesh({"data": 8})) == size
