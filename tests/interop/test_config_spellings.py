"""A folder whose config.json spells one value as a list is the same network as torch builds."""

import json
import shutil

import numpy as np
import pytest

from medsd_jax.errors import UserError
from medsd_jax.interop.diffusers_folder import load_pipeline
from medsd_jax.models.params import abstract, component
from medsd_jax.models.unet import UNet2DConditionModel
from tests.tiny import networks

SPELLINGS = {
    "layers": {"layers_per_block": [1, 1]},
    "width": {"cross_attention_dim": [32, 32]},
    "depth": {"transformer_layers_per_block": [1, 1]},
    "depth_of_both_ways": {
        "transformer_layers_per_block": [1, 1],
        "reverse_transformer_layers_per_block": [1, 1],
    },
    "only_cross": {"only_cross_attention": [False, False]},
    "all": {
        "layers_per_block": [1, 1],
        "cross_attention_dim": [32, 32],
        "transformer_layers_per_block": [1, 1],
        "only_cross_attention": [False, False],
        "sample_size": [8, 8],
    },
    "square": {"sample_size": [8, 8]},
    "no_size": {"sample_size": None},
    "null_is_false": {"upcast_attention": None, "class_embeddings_concat": None},
}


@pytest.fixture
def folder(torch_folder, tmp_path):
    def edit(part, **changes):
        made = tmp_path / "model"
        if not made.exists():
            shutil.copytree(torch_folder, made)
        path = made / part / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        return made

    return edit


@pytest.mark.torch
@pytest.mark.parametrize("name", SPELLINGS)
def test_the_u_net_is_torch_s(folder, name):
    import diffusers
    import torch

    made = folder("unet", **SPELLINGS[name])
    theirs = diffusers.UNet2DConditionModel.from_pretrained(made / "unet").eval()
    model = load_pipeline(made)
    latents, times, context = networks.unet_inputs(model.unet, 8, 8)
    graphdef, _ = abstract(lambda rngs: UNet2DConditionModel(model.unet, rngs=rngs))
    ours = networks.run(graphdef, component(model.params, "unet"), latents, times, context)
    with torch.no_grad():
        expected = theirs(
            torch.from_numpy(latents.transpose(0, 3, 1, 2).copy()),
            torch.from_numpy(times),
            torch.from_numpy(context),
        ).sample.numpy()
    expected = expected.transpose(0, 2, 3, 1)
    # Float32 sums in another order, as in the parity tests.
    assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.torch
def test_a_vae_s_side_is_a_note(folder):
    made = folder("vae", sample_size=[16, 16], shift_factor=0.0, use_quant_conv=True)
    assert load_pipeline(made).vae.sample_size == 16
    assert load_pipeline(folder("vae", sample_size=None)).vae.downscale == 2


@pytest.mark.torch
@pytest.mark.parametrize(
    "changes",
    [
        {"layers_per_block": [1, 2]},
        {"cross_attention_dim": [32, 16]},
        {"transformer_layers_per_block": [1, 2]},
        {"transformer_layers_per_block": [2, 2]},
        {"only_cross_attention": [True, False]},
        {"only_cross_attention": [True, True]},
        {"sample_size": [8, 16]},
        {"sample_size": [8, 8, 8]},
        {"layers_per_block": [1]},
        {"layers_per_block": []},
        {"cross_attention_dim": [32, 32.0]},
    ],
)
def test_unequal_values_are_another_network(folder, changes):
    made = folder("unet", **changes)
    (key, value) = next(iter(changes.items()))
    with pytest.raises(UserError) as error:
        load_pipeline(made)
    assert f"{key} = {tuple(value)!r} is not supported" in str(error.value)
    assert "\n" not in str(error.value)
