"""What a model is stands in its parts; the pipeline that happened to save it changes nothing."""

import json
import logging
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from medsd_jax.errors import UserError
from medsd_jax.interop.diffusers_folder import (
    load_pipeline,
    load_structure,
    load_vae,
    save_pipeline,
)
from medsd_jax.interop.hub import resolve

UNET = "unet/diffusion_pytorch_model.safetensors"


def _edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "name",
    [
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipelineLegacy",
        "StableDiffusionPipelineSafe",
        "DiffusionPipeline",
        "MyOwnPipeline",
    ],
)
def test_a_pipeline_of_the_same_parts(tiny_folder, tiny_model, tmp_path, caplog, same_bits, name):
    _edit(tiny_folder / "model_index.json", _class_name=name)
    with caplog.at_level(logging.INFO, "medsd_jax"):
        model = load_pipeline(tiny_folder)
    assert name in caplog.text
    same_bits(model.params, tiny_model.params)
    same_bits(load_vae(tiny_folder).params, {
        k.removeprefix("vae."): x for k, x in tiny_model.params.items() if k.startswith("vae.")
    })  # fmt: skip
    save_pipeline(model, tmp_path / "new")
    written = json.loads((tmp_path / "new" / "model_index.json").read_text())
    assert written["_class_name"] == "StableDiffusionPipeline"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"_class_name": "StableDiffusionXLPipeline"}, "'StableDiffusionXLPipeline'; only"),
        ({"_class_name": "StableDiffusionXLImg2ImgPipeline"}, "only StableDiffusionPipeline"),
        ({"_class_name": "StableDiffusion3Pipeline", "unet": None}, "StableDiffusion3Pipeline"),
        ({"_class_name": "FluxPipeline", "unet": None}, "FluxPipeline"),
        ({"_class_name": "AltDiffusionPipeline"}, "AltDiffusionPipeline"),
        ({"_class_name": ["StableDiffusionPipeline"]}, "_class_name is"),
        (
            {
                "_class_name": "PixArtAlphaPipeline",
                "unet": None,
                "transformer": ["diffusers", "PixArtTransformer2DModel"],
            },
            "names no unet, but transformer: a PixArtAlphaPipeline is another kind",
        ),
        (
            {
                "_class_name": "StableDiffusionControlNetPipeline",
                "controlnet": ["diffusers", "ControlNetModel"],
            },
            r"controlnet \(ControlNetModel\) of a StableDiffusionControlNetPipeline",
        ),
        (
            {"_class_name": "AudioPipeline", "text_encoder": ["transformers", "ClapTextModel"]},
            "text_encoder of a AudioPipeline is a ClapTextModel",
        ),
        ({"tokenizer": ["transformers", ["CLIPTokenizer"]]}, "tokenizer is a "),
        ({"tokenizer": []}, "tokenizer is a None"),
    ],
)
def test_other_parts_are_another_kind(tiny_folder, changes, message):
    _edit(tiny_folder / "model_index.json", **changes)
    for load in (load_pipeline, load_vae, load_structure):
        with pytest.raises(UserError, match=message) as error:
            load(tiny_folder)
        assert "\n" not in str(error.value) and "model_index.json" in str(error.value)


@pytest.mark.parametrize(
    "more, message", [(5, "inpainting"), (4, "editing"), (2, "but the VAE's latents have 4")]
)
def test_a_u_net_that_takes_more_than_latents(tiny_folder, more, message):
    """Those of inpainting come as StableDiffusionInpaintPipeline, which has the same parts."""
    _edit(tiny_folder / "model_index.json", _class_name="StableDiffusionInpaintPipeline")
    _edit(tiny_folder / "unet" / "config.json", in_channels=4 + more)
    tensors = load_file(tiny_folder / UNET)
    weight = tensors["conv_in.weight"]
    wide = np.concatenate([weight, weight, weight], 1)[:, : 4 + more]
    tensors["conv_in.weight"] = np.ascontiguousarray(wide)
    save_file(tensors, tiny_folder / UNET)
    for load in (load_pipeline, load_structure):
        with pytest.raises(UserError, match=rf"in_channels = {4 + more}.*{message}"):
            load(tiny_folder)


@pytest.mark.parametrize(
    "name", ["CLIPTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend", "AutoTokenizer"]
)
def test_tokenizers_by_other_names(tiny_folder, tiny_model, caplog, name):
    _edit(tiny_folder / "model_index.json", tokenizer=["transformers", name])
    loaded = load_pipeline(tiny_folder).tokenizer
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert type(loaded).__name__ == "CLIPTokenizer"
    assert loaded("left Lung!")["input_ids"] == tiny_model.tokenizer("left Lung!")["input_ids"]


def test_a_tokenizer_of_other_rules_is_not_taken_for_clip_s(tiny_folder):
    """PreTrainedTokenizerFast is any tokenizer: here one that keeps capitals and adds no ends."""
    _edit(tiny_folder / "model_index.json", tokenizer=["transformers", "PreTrainedTokenizerFast"])
    path = tiny_folder / "tokenizer" / "tokenizer.json"
    _edit(path, normalizer=None, post_processor=None)
    with pytest.raises(UserError, match=r"tokenizer\.json cuts texts otherwise than CLIPTokenizer"):
        load_pipeline(tiny_folder)
    path.write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        load_pipeline(tiny_folder)


def test_an_encoder_saved_with_its_projection(tiny_folder, tiny_model, same_bits):
    """The projection comes after the hidden states that the U-Net reads."""
    encoder = ["transformers", "CLIPTextModelWithProjection"]
    _edit(tiny_folder / "model_index.json", text_encoder=encoder)
    path = tiny_folder / "text_encoder" / "model.safetensors"
    save_file({**load_file(path), "text_projection.weight": np.ones((16, 16), np.float32)}, path)
    same_bits(load_pipeline(tiny_folder).params, tiny_model.params)


def _checkpoint(tiny_folder, *, parts=()):
    folder = tiny_folder.parent / "runs" / "checkpoint-500"
    folder.mkdir(parents=True)
    (folder / "optimizer.bin").write_bytes(b"state")
    for part in parts:
        shutil.copytree(tiny_folder / "unet", folder / part)
    return folder


def test_a_trainer_s_checkpoint_is_spoken_of_as_one(tiny_folder):
    folder = _checkpoint(tiny_folder, parts=("unet", "unet_ema"))
    with pytest.raises(UserError, match="put unet or unet_ema in the place of its unet") as error:
        resolve(folder)
    assert "training workdir" not in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="checkpoint-500 and its like are a trainer's own states"):
        resolve(folder.parent)


@pytest.mark.parametrize(
    "name, message",
    [
        ("pytorch_lora_weights.safetensors", "this folder as its LoRA"),
        ("model.safetensors", "go on"),
    ],
)
def test_a_trainer_s_checkpoint_without_parts(tiny_folder, name, message):
    folder = _checkpoint(tiny_folder)
    (folder / name).write_bytes(b"")
    with pytest.raises(UserError, match=message) as error:
        resolve(folder)
    assert "from_single_file" not in str(error.value)


def test_a_folder_of_parts_without_an_index(tiny_folder):
    (tiny_folder / "model_index.json").unlink()
    with pytest.raises(UserError, match="it was copied in part"):
        resolve(tiny_folder)


@pytest.mark.torch
def test_what_torch_s_image_to_image_pipeline_saves(torch_folder, tmp_path, same_bits):
    from diffusers import StableDiffusionImg2ImgPipeline

    pipe = StableDiffusionImg2ImgPipeline.from_pretrained(torch_folder)
    pipe.save_pretrained(tmp_path / "img2img")
    index = json.loads((tmp_path / "img2img" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionImg2ImgPipeline"
    same_bits(load_pipeline(tmp_path / "img2img").params, load_pipeline(torch_folder).params)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_compiled_part_is_refused_in_a_short_line(tiny_folder, part):
    """torch diffusers loads it as random weights without an error."""
    (path,) = (tiny_folder / part).glob("*.safetensors")
    save_file({f"_orig_mod.{name}": x for name, x in load_file(path).items()}, path)
    with pytest.raises(UserError, match=r"names carry '_orig_mod\.', as torch\.compile") as error:
        load_pipeline(tiny_folder)
    assert len(str(error.value)) < len(str(tiny_folder)) + 300
