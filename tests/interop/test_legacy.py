import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from medsd_jax.interop.diffusers_folder import load_pipeline
from medsd_jax.interop.legacy import modernize

NEW_TO_OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def _old_vae_name(name: str) -> str:
    if ".attentions." in name:
        for new, old in NEW_TO_OLD.items():
            name = name.replace(f".{new}.", f".{old}.")
    return name


def _rewrite(path, change):
    tensors = dict(change(name, x) for name, x in load_file(path).items())
    save_file(tensors, path, metadata={"format": "pt"})
    return tensors


def test_old_vae_attention_loads(tiny_folder, tiny_model, same_bits):
    path = tiny_folder / "vae" / "diffusion_pytorch_model.safetensors"
    changed = _rewrite(path, lambda name, x: (_old_vae_name(name), x))
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in changed
    same_bits(load_pipeline(tiny_folder).params, tiny_model.params)


def test_vae_attention_as_convolutions_loads(tiny_folder, tiny_model, same_bits):
    def as_convolution(name, x):
        is_weight = ".attentions." in name and x.ndim == 2
        return _old_vae_name(name), np.ascontiguousarray(x[:, :, None, None]) if is_weight else x

    path = tiny_folder / "vae" / "diffusion_pytorch_model.safetensors"
    changed = _rewrite(path, as_convolution)
    assert changed["decoder.mid_block.attentions.0.query.weight"].shape == (16, 16, 1, 1)
    same_bits(load_pipeline(tiny_folder).params, tiny_model.params)


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_both_clip_prefixes_and_position_ids_load(tiny_folder, tiny_model, prefix, same_bits):
    path = tiny_folder / "text_encoder" / "model.safetensors"
    changed = _rewrite(path, lambda name, x: (prefix + name.removeprefix("text_model."), x))
    assert f"{prefix}final_layer_norm.bias" in changed
    ids = {f"{prefix}embeddings.position_ids": np.arange(12)[None]}
    save_file(changed | ids, path, metadata={"format": "pt"})
    same_bits(load_pipeline(tiny_folder).params, tiny_model.params)


def test_other_names_pass_unchanged():
    tensors = {"conv_in.weight": np.zeros(1), "attentions.0.query.weight": np.zeros(1)}
    assert modernize("unet", tensors) == tensors
    tensors = {"logit_scale": np.zeros(1), "vision_model.embeddings.class_embedding": np.zeros(1)}
    assert modernize("text_encoder", tensors) == tensors


@pytest.mark.torch
def test_old_vae_means_to_us_what_it_means_to_diffusers(torch_folder, tmp_path, same_bits):
    from diffusers import AutoencoderKL

    folder = shutil.copytree(torch_folder, tmp_path / "old")
    _rewrite(
        folder / "vae" / "diffusion_pytorch_model.safetensors",
        lambda name, x: (_old_vae_name(name), x),
    )
    config_path = folder / "vae" / "config.json"
    config = json.loads(config_path.read_text())
    config_path.write_text(json.dumps({**config, "_diffusers_version": "0.6.0"}))
    theirs = AutoencoderKL.from_pretrained(folder / "vae").state_dict()
    ours = load_pipeline(folder).params
    for new in NEW_TO_OLD:
        name = f"encoder.mid_block.attentions.0.{new}"
        same_bits(
            {"w": ours[f"vae.{name}.kernel"].T, "b": ours[f"vae.{name}.bias"]},
            {"w": theirs[f"{name}.weight"].numpy(), "b": theirs[f"{name}.bias"].numpy()},
        )
