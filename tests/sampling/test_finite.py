"""Numbers that are not finite end a sampling before an image of them is seen: which part, where."""

import dataclasses

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import medsd_jax
from medsd_jax.cli.main import exit_code
from medsd_jax.diffusion.samplers import SAMPLERS
from medsd_jax.errors import UserError
from medsd_jax.interop.lora_files import write_lora
from medsd_jax.parallel.mesh import make_mesh
from medsd_jax.sampling.finite import PARTS
from medsd_jax.workflows.models import add_lora, save
from medsd_jax.workflows.train.preview import make_preview
from tests import commands
from tests.tiny.pipeline import SIZE, tiny_pipeline

BROKEN = {
    "text encoder": "text_encoder.text_model.final_layer_norm.scale",
    "VAE's encoder": "vae.encoder.conv_out.kernel",
    "U-Net": "unet.conv_out.kernel",
    "VAE's decoder": "vae.decoder.conv_out.kernel",
}
IMAGE = np.full((SIZE, SIZE, 3), 100, np.uint8)


def with_value(name, value=np.nan, at=0):
    """The tiny model with one number of one weight replaced."""
    model = tiny_pipeline()
    broken = np.array(model.params[name])
    broken.flat[at] = value
    return dataclasses.replace(model, params={**model.params, name: broken})


def sample(model, prompts="effusion", seen=None, **settings):
    """The images; with `seen`, a list that gets the batches as they come."""
    settings = {"mesh": make_mesh({}, jax.devices()[:1]), "num_steps": 3, **settings}
    if seen is None:
        return medsd_jax.sample(model, prompts, progress=False, **settings)
    return seen.extend(medsd_jax.sample_batches(model, prompts, progress=False, **settings))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("part", [part for part in PARTS if part != "VAE's encoder"])
def test_every_sampler_names_the_part(part, sampler):
    seen = []
    with pytest.raises(UserError, match=f"the {part} gives numbers that are not finite") as error:
        sample(with_value(BROKEN[part]), seeds=[7], sampler=sampler, seen=seen)
    assert not seen and "image 0 (prompt 'effusion', seed 7)" in str(error.value)


@pytest.mark.parametrize("part", PARTS)
def test_redrawing_names_the_part(part):
    with pytest.raises(UserError, match=f"the {part} gives numbers that are not finite"):
        sample(with_value(BROKEN[part]), init_images=IMAGE)


def test_an_infinite_number_is_found_as_well():
    with pytest.raises(UserError, match=r"the VAE's decoder gives"):
        sample(with_value("vae.decoder.conv_out.bias", np.inf))
    # Drawing from noise encodes no image: a broken encoder does no harm there.
    sample(with_value(BROKEN["VAE's encoder"]))


def test_one_image_of_many_is_named_and_what_came_before_is_kept():
    """One row of the token table is broken, which one prompt uses."""
    (token,) = tiny_pipeline().tokenizer("z", add_special_tokens=False)["input_ids"]
    name = "text_encoder.text_model.embeddings.token_embedding.embedding"
    model = with_value(name, at=token * 32)
    seen = []
    settings = {"seeds": [5, 6, 7, 8], "batch_size": 2, "seen": seen}
    with pytest.raises(UserError, match=r"text encoder .* image 3 .prompt 'z', seed 8., 1 of 2"):
        sample(model, ["a", "b", "a", "z"], **settings)
    (first,) = seen
    np.testing.assert_array_equal(first, sample(tiny_pipeline(), ["a", "b"], seeds=[5, 6]))


def test_a_long_prompt_is_shown_in_part():
    with pytest.raises(UserError) as error:
        sample(with_value(BROKEN["U-Net"]), "long\n" * 500)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_the_command_ends_with_2_and_writes_no_image(tmp_path):
    """Each weight is finite, so that the model can be read: what a layer gives overflows."""
    name = BROKEN["VAE's decoder"]
    kernel = np.full_like(tiny_pipeline().params[name], 3e38)
    model = tiny_pipeline()
    model = dataclasses.replace(model, params={**model.params, name: kernel})
    save(model, tmp_path / "model")
    words = ["--model", str(tmp_path / "model"), "--output", str(tmp_path / "out")]
    words += ["--prompt", "a", "--num_steps", "2", "--num_images", "1"]
    assert exit_code(lambda: commands.sample(words)) == 2
    assert not list((tmp_path / "out").rglob("*.png"))


def test_a_scale_that_overflows_the_weights_is_refused(tmp_path):
    kernel = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    matrices = {f"{kernel}.lora_{x}.kernel": np.ones((32, 32), np.float32) for x in "AB"}
    write_lora(tmp_path, matrices, 32.0)
    add_lora(tiny_pipeline(), tmp_path, 2.0)
    with pytest.raises(UserError, match=r"scale 1e\+38 gives .*to_q.kernel .*not finite"):
        add_lora(tiny_pipeline(), tmp_path, 1e38)


def test_no_model_is_written_that_no_one_can_read(tmp_path):
    with pytest.raises(UserError, match=r"unet: conv_out.weight holds 1 of .* not finite"):
        save(with_value(BROKEN["U-Net"]), tmp_path / "new")
    assert not (tmp_path / "new" / "model_index.json").exists()


def test_previews_of_a_run_that_diverged_end_it(tmp_path):
    model = with_value(BROKEN["U-Net"])
    config = ConfigDict(
        {
            "preview": {
                "every_steps": 1, "prompts": ("a",), "images_per_prompt": 1, "seed": 0,
                "sampler": "ddim", "num_steps": 2, "guidance_scale": 4.0,
            },
            "data": {"image_size": SIZE},
            "model": {"dtype": "float32", "attention": "auto"},
        }
    )  # fmt: skip
    preview = make_preview(config, model, make_mesh({}, jax.devices()[:1]), tmp_path)
    with pytest.raises(UserError, match="the U-Net gives numbers that are not finite"):
        preview(model.params, 1)
    assert not list(tmp_path.rglob("*.png"))
