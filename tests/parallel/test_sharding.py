"""The sharding table on Stable Diffusion 1.5 and 2: who lies where, and how much a device holds."""

import functools
import math

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from medsd_jax.models.bert_config import BertTextConfig
from medsd_jax.models.clip import CLIPTextModel
from medsd_jax.models.config import CLIPTextConfig, UNetConfig, VAEConfig
from medsd_jax.models.params import abstract, with_prefix
from medsd_jax.models.text_encoder import text_encoder_module
from medsd_jax.models.unet import UNet2DConditionModel
from medsd_jax.models.vae import AutoencoderKL
from medsd_jax.parallel.mesh import make_mesh
from medsd_jax.parallel.sharding import bytes_per_device, leaf_sharding, tree_shardings
from medsd_jax.training.optim import make_optimizer
from medsd_jax.training.state import init_state

# The published shapes: 859,520,964 and 865,910,724 U-Net weights, as the test checks.
UNETS = {
    "sd15": (UNetConfig(cross_attention_dim=768), 859_520_964),
    "sd2": (
        UNetConfig(
            cross_attention_dim=1024,
            attention_head_dim=(5, 10, 20, 20),
            use_linear_projection=True,
        ),
        865_910_724,
    ),
}
VAE = VAEConfig(
    block_out_channels=(128, 256, 512, 512),
    layers_per_block=2,
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
)
TEXT = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
MIB = 2**20


@functools.cache
def weights(name: str) -> dict[str, jax.ShapeDtypeStruct]:
    """All three networks' shapes; nothing is allocated."""
    config, count = UNETS[name]
    _, unet = abstract(functools.partial(UNet2DConditionModel, config))
    assert sum(math.prod(x.shape) for x in unet.values()) == count
    _, vae = abstract(functools.partial(AutoencoderKL, VAE))
    _, text = abstract(functools.partial(CLIPTextModel, TEXT))
    return {
        **with_prefix(unet, "unet"),
        **with_prefix(vae, "vae"),
        **with_prefix(text, "text_encoder"),
    }


def total(tree) -> int:
    return sum(x.dtype.itemsize * math.prod(x.shape) for x in jax.tree.leaves(tree))


@functools.cache
def train_state(name: str):
    """Weights, two Adam moments and the moving average of the U-Net."""
    tx = make_optimizer(
        optax.constant_schedule(1e-5), b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.01, clip_norm=1.0
    )
    unet = {k: x for k, x in weights(name).items() if k.startswith("unet.")}
    return jax.eval_shape(functools.partial(init_state, tx=tx, ema=True), unet)


@pytest.mark.parametrize("name", UNETS)
def test_every_large_weight_is_sharded_over_fsdp(name):
    params, mesh = weights(name), make_mesh({"fsdp": 8})
    shardings = tree_shardings(params, mesh)
    whole = {
        key: total(x)
        for key, x in params.items()
        if "fsdp" not in jax.tree.leaves(tuple(shardings[key].spec))
    }
    assert max(whole.values()) <= MIB, max(whole, key=whole.get)
    # What stays whole is biases, norms and a few odd layers: 0.3% of all weights.
    assert sum(whole.values()) < 0.003 * total(params)


@pytest.mark.parametrize("name", UNETS)
def test_a_device_holds_its_share_of_the_state(name):
    state = train_state(name)
    assert total(state) > 4 * 3.4e9  # fp32 weights, two moments, average
    for axes, share in [({"fsdp": 8}, 8), ({"data": 2, "fsdp": 4}, 4), ({"data": 8}, 1)]:
        mesh = make_mesh(axes)
        held = bytes_per_device(state, tree_shardings(state, mesh))
        print(f"{name} {axes}: {held / 2**30:.2f} of {total(state) / 2**30:.2f} GiB per device")
        assert total(state) / share <= held <= 1.02 * total(state) / share


def test_tensor_cuts_attention_and_feed_forward_too():
    params = weights("sd15")
    two, one = (
        bytes_per_device(params, tree_shardings(params, make_mesh(axes, jax.devices()[:4])))
        for axes in ({"fsdp": 2, "tensor": 2}, {"fsdp": 2, "data": 2})
    )
    assert two < 0.85 * one


def test_moments_and_average_lie_where_their_weight_lies():
    state, mesh = train_state("sd15"), make_mesh({"fsdp": 2, "tensor": 2, "data": 2})
    placed = tree_shardings(state, mesh)
    moments = [x for x in jax.tree.leaves(placed.opt_state, is_leaf=lambda x: isinstance(x, dict))]
    moments = [x for x in moments if isinstance(x, dict)]
    assert len(moments) == 2  # mu and nu
    for tree in (*moments, placed.ema):
        assert tree == placed.trainable
    assert placed.step.spec == P()


CASES = {
    "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.kernel": (768, 1280),
    "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0.kernel": (1280, 1280),
    "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.kernel": (1280, 10240),
    "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.2.kernel": (5120, 1280),
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.kernel": (768, 768),
    "text_encoder.text_model.encoder.layers.0.mlp.fc2.kernel": (3072, 768),
    "text_encoder.text_model.embeddings.token_embedding.embedding": (49408, 768),
    "text_encoder.encoder.layer.0.attention.self.query.kernel": (768, 768),
    "text_encoder.encoder.layer.0.attention.output.dense.kernel": (768, 768),
    "text_encoder.encoder.layer.0.intermediate.dense.kernel": (768, 3072),
    "text_encoder.encoder.layer.0.output.dense.kernel": (3072, 768),
    "text_encoder.embeddings.word_embeddings.embedding": (28996, 768),
    "unet.mid_block.attentions.0.proj_in.kernel": (1, 1, 1280, 1280),
    "unet.mid_block.resnets.0.conv1.kernel": (3, 3, 1280, 1280),
    "unet.conv_out.kernel": (3, 3, 320, 4),
    "unet.conv_out.bias": (4,),
    "unet.mid_block.resnets.0.norm1.scale": (1280,),
}
SPECS = [
    P("fsdp", "tensor"), P("tensor", "fsdp"), P("fsdp", "tensor"), P("tensor", "fsdp"),
    P("fsdp", "tensor"), P("tensor", "fsdp"), P("fsdp"),
    P("fsdp", "tensor"), P("tensor", "fsdp"), P("fsdp", "tensor"), P("tensor", "fsdp"), P("fsdp"),
    P(None, None, None, "fsdp"),
    P(None, None, None, "fsdp"), P(None, None, None, "fsdp"), P(), P(),
]  # fmt: skip


@pytest.mark.parametrize(("name", "spec"), list(zip(CASES, SPECS, strict=True)))
def test_table(name, spec):
    bert = abstract(text_encoder_module(BertTextConfig(vocab_size=28996)))[1]
    both = weights("sd15") | with_prefix(bert, "text_encoder")
    assert both[name].shape == CASES[name]
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    assert leaf_sharding(name, CASES[name], mesh).spec == spec


def test_an_axis_that_does_not_divide_is_dropped():
    mesh = make_mesh({"fsdp": 8})
    assert leaf_sharding("unet.conv_out.kernel", (3, 3, 320, 4), mesh).spec == P()
    assert leaf_sharding("x.to_q.kernel", (12, 16), mesh).spec == P(None, "tensor")
    assert leaf_sharding("x.kernel", (16,), mesh).spec == P("fsdp")
    assert leaf_sharding("x.kernel", (), mesh).spec == P()


def test_bytes_per_device_are_those_of_real_arrays():
    mesh = make_mesh({"fsdp": 4, "data": 2})
    tree = {"a.kernel": np.zeros((3, 8), np.float32), "a.bias": np.zeros(8, np.float32)}
    shardings = tree_shardings(tree, mesh)
    placed = jax.device_put(tree, shardings)
    real = sum(x.addressable_shards[0].data.nbytes for x in placed.values())
    assert bytes_per_device(tree, shardings) == real == 3 * 2 * 4 + 8 * 4
