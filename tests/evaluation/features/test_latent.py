"""Latent features against diffusers' AutoencoderKL, which reads the same folder."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from medsd_jax.errors import UserError
from medsd_jax.evaluation.features import latent
from medsd_jax.evaluation.features.extraction import open_network
from medsd_jax.evaluation.features.latent import open_latent_space
from medsd_jax.interop.diffusers_folder import save_pipeline
from medsd_jax.models.params import bind
from tests.tiny import pipeline
from tests.vision import towers

# Float32 sums in another order: 8e-7 of the largest value was measured.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd") / "model"
    save_pipeline(pipeline.tiny_pipeline(), folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """Of one's own, to change."""
    return shutil.copytree(saved, tmp_path / "run" / "model")


def embed(space, x) -> np.ndarray:
    run = jax.jit(lambda w, x: bind(space.graphdef, w).pooled_features(x))
    return np.asarray(run(dict(space.params), x))


@pytest.mark.torch
@pytest.mark.parametrize("scaling_factor", [0.18215, 1.7])
def test_equals_diffusers(folder, scaling_factor):
    torch = pytest.importorskip("torch")
    from diffusers import AutoencoderKL

    towers.edit(folder / "vae" / "config.json", scaling_factor=scaling_factor)
    space = open_latent_space(str(folder))
    images = [towers.image(16, 16, 3), towers.image(30, 21, 1)]
    x = space.batch(images)
    module = AutoencoderKL.from_pretrained(folder / "vae").eval()
    assert module.config.scaling_factor == scaling_factor
    with torch.inference_mode():
        mean = module.encode(torch.from_numpy(np.moveaxis(x, -1, 1).copy())).latent_dist.mean
        theirs = (mean * module.config.scaling_factor).permute(0, 2, 3, 1).flatten(1).numpy()
    ours = embed(space, x)
    assert ours.shape == theirs.shape == (2, 8 * 8 * 4)
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    print(f"latent: {error:.1e}")
    assert ours.dtype == np.float32
    assert error <= TOLERANCE
    assert np.abs(theirs[0] - theirs[1]).max() > 0.1 * np.abs(theirs).max()


def test_images_are_prepared_as_in_training(saved):
    """Black bars beside what is not square; grey is repeated; [-1, 1]."""
    space = open_latent_space(str(saved))
    assert space.steps == "grey repeated to RGB; bilinear to 16x16, pad; x / 127.5 - 1"
    tall, square = np.full((32, 16), 255, np.uint8), towers.image(16, 16, 3)
    x = space.batch([tall, square])
    assert x.shape == (2, 16, 16, 3) and x.dtype == np.float32
    assert (x[0, :, :4] == -1).all() and (x[0, :, 4:12] == 1).all() and (x[0, :, 12:] == -1).all()
    np.testing.assert_allclose(x[1], square / 127.5 - 1, atol=1e-6)  # one rounding of float32


def test_a_training_workdir_has_its_recipe(folder):
    """Its image size and resize mode, not those of the model that it started from."""
    (folder.parent / "config.json").write_text(
        json.dumps({"data": {"image_size": 32, "resize_mode": "crop"}, "seed": 0})
    )
    space = open_latent_space(str(folder.parent))
    assert (space.image_size, space.resize_mode) == (32, "crop")
    assert embed(space, space.batch([towers.image(50, 40, 1)])).shape == (1, 16 * 16 * 4)
    assert open_latent_space(str(folder)).image_size == 16
    # A diffusers folder may hold a config.json that is no recipe.
    (folder / "config.json").write_text("{}")
    assert open_latent_space(str(folder)).image_size == 16
    (folder.parent / "config.json").write_text('{"data": {"image_size": "32"}}')
    with pytest.raises(UserError, match=r"does not say data\.image_size and data\.resize_mode"):
        open_latent_space(str(folder.parent))


def test_only_the_encoder_counts(folder):
    """Its weights and the scale change the fingerprint; the decoder's weights do not."""
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    before = open_network(f"latent={folder}")
    assert not any(name.startswith(("decoder.", "post_quant")) for name in before.params)
    original = load_file(path)
    save_file({**original, "decoder.conv_in.bias": original["decoder.conv_in.bias"] + 1}, path)
    assert open_network(f"latent={folder}").fingerprint == before.fingerprint
    save_file({**original, "encoder.conv_in.bias": original["encoder.conv_in.bias"] + 1}, path)
    assert open_network(f"latent={folder}").fingerprint != before.fingerprint
    save_file(original, path)
    towers.edit(folder / "vae" / "config.json", scaling_factor=2.0)
    assert open_network(f"latent={folder}").fingerprint != before.fingerprint


def test_asks_for_full_float32_products(saved):
    """Otherwise a TPU multiplies in bfloat16 and a GPU in TF32, and distances change with them."""
    space = open_latent_space(str(saved))
    jaxpr = str(
        jax.make_jaxpr(lambda w, x: bind(space.graphdef, w).pooled_features(x))(
            dict(space.params), np.zeros((1, 16, 16, 3), np.float32)
        )
    )
    products = jaxpr.count("conv_general_dilated[") + jaxpr.count("dot_general[")
    assert products == jaxpr.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") > 10


def test_a_vae_that_takes_no_rgb_is_refused(saved, monkeypatch):
    vae = latent.load_vae(str(saved))
    grey = vae._replace(config=dataclasses.replace(vae.config, in_channels=1))
    monkeypatch.setattr(latent, "load_vae", lambda _: grey)
    with pytest.raises(UserError, match="its VAE takes 1 channels, not RGB"):
        open_latent_space(str(saved))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent", "absent does not exist; give a diffusers folder"),
        ("run/model/vae", "is one component of a diffusers folder; give"),
        ("run/model/model_index.json", "is a file"),
        ("empty", "empty is empty"),
    ],
)
def test_wrong_folders_give_one_line(folder, tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message) as error:
        open_latent_space(str(tmp_path / name))
    assert "\n" not in str(error.value)
