"""Folders that the former Flax trainer wrote, against the same model as torch wrote it.

The trees are made here from torch's modules by the rule of the old converters: numbers of lists
hang on the list's name, linear kernels are transposed, convolutions are HWIO. They are written by
Flax's own serialization.
"""

import json
import re
import shutil

import flax.serialization
import flax.traverse_util
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from medsd_jax.errors import UserError
from medsd_jax.interop.diffusers_folder import load_pipeline, load_vae, save_pipeline
from medsd_jax.interop.flax_weights import read_flax_weights
from medsd_jax.interop.hub import _needed
from medsd_jax.models.clip import CLIPTextModel
from medsd_jax.models.params import abstract, component
from medsd_jax.models.unet import UNet2DConditionModel
from medsd_jax.models.vae import AutoencoderKL
from tests.tiny import networks

STEMS = {
    "unet": "diffusion_flax_model",
    "vae": "diffusion_flax_model",
    "text_encoder": "flax_model",
}
TORCH_FILES = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
OLD_VAE_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out_0": "proj_attn"}


def flax_tree(part, state_dict):
    """A torch state dict as the nested dict of the Flax model of the same part."""
    flat = {}
    for name, x in state_dict.items():
        *head, leaf = name.split(".")
        if part != "text_encoder":
            head = re.sub(r"\.(\d+)", r"_\1", ".".join(head)).split(".")
        if part == "vae" and "attentions" in name:
            head = [OLD_VAE_NAMES.get(word, word) for word in head]
        if head[0] not in ("text_model",) and part == "text_encoder":
            head = ["text_model", *head]
        if leaf == "weight":
            leaf = {1: "scale", 2: "kernel", 4: "kernel"}[x.ndim]
            if "embedding" in head[-1]:
                leaf = "embedding"
            elif x.ndim == 2:
                x = x.T
            elif x.ndim == 4:
                x = np.einsum("oihw->hwio", x)
        flat[(*head, leaf)] = np.ascontiguousarray(x)
    return flax.traverse_util.unflatten_dict(flat)


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def as_flax(folder, cast=lambda x: x):
    """Turns a folder of torch's classes into what FlaxStableDiffusionPipeline left."""
    edit(
        folder / "model_index.json",
        _class_name="FlaxStableDiffusionPipeline",
        unet=["diffusers", "FlaxUNet2DConditionModel"],
        vae=["diffusers", "FlaxAutoencoderKL"],
        text_encoder=["transformers", "FlaxCLIPTextModel"],
        scheduler=["diffusers", "FlaxDDIMScheduler"],
        safety_checker=["stable_diffusion", "FlaxStableDiffusionSafetyChecker"],
    )
    edit(folder / "scheduler" / "scheduler_config.json", _class_name="FlaxDDIMScheduler")
    edit(folder / "unet" / "config.json", split_head_dim=False, use_memory_efficient_attention=True)
    for part, stem in STEMS.items():
        path = folder / part / f"{TORCH_FILES[part]}.safetensors"
        tree = flax_tree(part, {k: cast(x) for k, x in load_file(path).items()})
        path.with_name(f"{stem}.msgpack").write_bytes(flax.serialization.to_bytes(tree))
        path.unlink()
    return folder


@pytest.fixture
def flax_folder(torch_folder, tmp_path):
    return as_flax(shutil.copytree(torch_folder, tmp_path / "flax"))


@pytest.mark.torch
def test_a_flax_folder_is_the_same_model(torch_folder, flax_folder, tmp_path, same_bits):
    from diffusers import StableDiffusionPipeline

    expected = load_pipeline(torch_folder)
    model = load_pipeline(flax_folder)
    same_bits(model.params, expected.params)
    assert (model.unet, model.vae, model.scheduler) == (
        expected.unet,
        expected.vae,
        expected.scheduler,
    )
    same_bits(load_vae(flax_folder).params, load_vae(torch_folder).params)
    save_pipeline(model, tmp_path / "new")
    written = StableDiffusionPipeline.from_pretrained(tmp_path / "new")
    assert type(written.scheduler).__name__ == "DDIMScheduler"
    before = StableDiffusionPipeline.from_pretrained(torch_folder)
    for part in STEMS:
        states = (getattr(p, part).state_dict() for p in (before, written))
        same_bits(*({k: x.numpy() for k, x in state.items()} for state in states))


@pytest.mark.torch
def test_bfloat16(torch_folder, tmp_path, same_bits):
    half = ml_dtypes.bfloat16
    folder = as_flax(
        shutil.copytree(torch_folder, tmp_path / "half"), lambda x: jnp.asarray(x, half)
    )
    wide = load_pipeline(torch_folder).params
    same_bits(
        load_pipeline(folder, dtype=half).params, {k: x.astype(half) for k, x in wide.items()}
    )
    rounded = {k: x.astype(half).astype(np.float32) for k, x in wide.items()}
    same_bits(load_pipeline(folder).params, rounded)


@pytest.mark.torch
def test_torch_s_file_is_taken_first(torch_folder, flax_folder, same_bits):
    name = "unet/diffusion_pytorch_model.safetensors"
    shutil.copy(torch_folder / name, flax_folder / name)
    (flax_folder / "unet" / "diffusion_flax_model.msgpack").write_bytes(b"damaged")
    same_bits(load_pipeline(flax_folder).params, load_pipeline(torch_folder).params)


@pytest.mark.torch
def test_shards_and_large_arrays(torch_folder, flax_folder, monkeypatch, same_bits):
    """transformers splits a file; Flax splits an array, of more than a gigabyte."""
    path = flax_folder / "text_encoder" / "flax_model.msgpack"
    tree = flax.serialization.msgpack_restore(path.read_bytes())
    flat = flax.traverse_util.flatten_dict(tree, sep="/")
    names, weight_map = sorted(flat), {}
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 256)
    for number in range(2):
        shard = f"flax_model-0000{number + 1}-of-00002.msgpack"
        mine = {name: flat[name] for name in names[number::2]}
        nested = flax.traverse_util.unflatten_dict(mine, sep="/")
        path.with_name(shard).write_bytes(flax.serialization.to_bytes(nested))
        weight_map |= dict.fromkeys(mine, shard)
    path.unlink()
    index = path.with_name("flax_model.msgpack.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    same_bits(load_pipeline(flax_folder).params, load_pipeline(torch_folder).params)
    index.write_text(json.dumps({"weight_map": dict(list(weight_map.items())[1:])}))
    with pytest.raises(UserError, match="the index and the shards disagree about"):
        load_pipeline(flax_folder)
    index.write_text(json.dumps({"weight_map": {"a": "../flax_model.msgpack"}}))
    with pytest.raises(UserError, match="is not the name of a msgpack file beside it"):
        load_pipeline(flax_folder)


@pytest.mark.torch
def test_a_weight_too_few(flax_folder):
    path = flax_folder / "unet" / "diffusion_flax_model.msgpack"
    tree = flax.serialization.msgpack_restore(path.read_bytes())
    del tree["down_blocks_0"]["resnets_0"]["conv1"]["kernel"]
    path.write_bytes(flax.serialization.to_bytes(tree))
    with pytest.raises(UserError, match=r"1 missing: down_blocks\.0\.resnets\.0\.conv1\.weight"):
        load_pipeline(flax_folder)


GOOD = flax.serialization.to_bytes({"conv_in": {"kernel": np.ones((3, 3, 4, 8), np.float32)}})
DEEP = {"kernel": np.ones(1, np.float32)}
for _ in range(60):
    DEEP = {"a": DEEP}


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "damaged or cut short"),
        (GOOD[:-7], "damaged or cut short"),
        (GOOD.replace(b"float32", b"float64"), "damaged or cut short"),
        (GOOD.replace(b"float32", b"objectx"), "damaged or cut short"),
        (GOOD + GOOD, "damaged or cut short"),
        (b"\x91" * 4000, "damaged or cut short"),
        (b"\xdd\xff\xff\xff\xff", "damaged or cut short"),
        (b"\x80", "holds no weights at all"),
        (b"\x93\x01\x02\x03", "holds a list and no tree"),
        (b"\xc0", "holds a NoneType and no tree"),
        (flax.serialization.to_bytes({"a": {"kernel": "code"}}), "a/kernel is a str"),
        (flax.serialization.to_bytes({"a": np.ones(2, np.complex64)}), "a is an array of complex"),
        (b"\x81\x01\x80", "a name that is no text"),
        (flax.serialization.to_bytes(DEEP), "nested too deep"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path, content, message):
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        dict(read_flax_weights(path))
    assert str(path) in str(error.value) and len(str(error.value)) < len(str(path)) + 300
    assert "\n" not in str(error.value)


def test_what_only_calls_itself_msgpack_is_named(tiny_folder):
    weights = tiny_folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    path = weights.with_name("diffusion_flax_model.msgpack")
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(UserError, match="git-lfs pointer"):
        load_pipeline(tiny_folder)
    path.rename(path.with_name("my_model.msgpack"))
    with pytest.raises(UserError, match=r"rename the file to diffusion_flax_model\.msgpack"):
        load_pipeline(tiny_folder)


def test_a_tree_below_params_is_the_tree(tmp_path):
    path = tmp_path / "flax_model.msgpack"
    tree = flax.serialization.msgpack_restore(GOOD)
    path.write_bytes(flax.serialization.to_bytes({"params": tree}))
    ((name, x),) = read_flax_weights(path)
    assert name == "conv_in.weight" and x.shape == (8, 4, 3, 3)


def test_a_hub_repository_of_flax_weights():
    """Many hold pickles beside them, which are not fetched."""
    names = ["model_index.json"]
    for part, stem in STEMS.items():
        names += [f"{part}/config.json", f"{part}/{stem}.msgpack", f"{part}/pytorch_model.bin"]
    expected = _needed(names, "org/name", None)
    assert {f"{part}/{stem}.msgpack" for part, stem in STEMS.items()} <= set(expected)
    assert not any(name.endswith(".bin") for name in expected)
    shards = [f"text_encoder/flax_model-0000{n}-of-00002.msgpack" for n in (1, 2)]
    names.remove("text_encoder/flax_model.msgpack")
    names += [*shards, "text_encoder/flax_model.msgpack.index.json"]
    assert set(shards) <= set(_needed(names, "org/name", None))


def test_what_the_last_upstream_flax_computed(shared_assets):
    """Its own file and its own numbers: a stored model beside what that library made of it."""
    folder = shared_assets / "flax_pipelines" / "sd1_like"
    if not folder.is_dir():
        pytest.skip("no folder of the former Flax trainer")
    model, expected = load_pipeline(folder), np.load(folder / "expected.npz")

    def run(cls, part, *inputs, method="__call__"):
        graphdef, _ = abstract(lambda rngs: cls(getattr(model, part), rngs=rngs))
        return networks.run(graphdef, component(model.params, part), *inputs, method=method)

    def error(ours, name):
        theirs = expected[name]
        theirs = theirs.transpose(0, 2, 3, 1) if name in ("unet", "decoded") else theirs
        return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()

    latents = expected["latents"].transpose(0, 2, 3, 1)
    denoised = run(
        UNet2DConditionModel, "unet", latents, expected["timesteps"], expected["context"]
    )
    # Upstream's feed-forward has GELU's approximation by tanh: torch's own U-Net is as far off.
    assert error(denoised, "unet") < 3e-4
    assert error(run(CLIPTextModel, "text_encoder", expected["ids"]), "text") < 1e-5
    assert error(run(AutoencoderKL, "vae", latents, method="decode"), "decoded") < 1e-5
    pixels = expected["pixels"].transpose(0, 2, 3, 1)
    mean, logvar = run(AutoencoderKL, "vae", pixels, method="encode")
    assert error(mean, "mean") < 1e-5
    assert error(np.clip(logvar, -30, 20), "logvar") < 1e-5
