"""Recomputing activations changes memory, not numbers."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from medsd_jax.models import params, unet
from medsd_jax.models.config import UNetConfig
from tests.tiny import networks

ONE_LEVEL = UNetConfig(
    down_block_types=("CrossAttnDownBlock2D",),
    up_block_types=("CrossAttnUpBlock2D",),
    block_out_channels=(16,),
    layers_per_block=1,
    attention_head_dim=4,
    cross_attention_dim=24,
    norm_num_groups=8,
)


def loss_of(remat: bool):
    make = functools.partial(unet.UNet2DConditionModel, ONE_LEVEL, remat=remat)
    graphdef, weights = networks.random_weights(make)
    latents, timesteps, context = map(jnp.asarray, networks.unet_inputs(ONE_LEVEL, 8, 8))

    def loss(weights):
        return jnp.mean(jnp.square(params.bind(graphdef, weights)(latents, timesteps, context)))

    return loss, weights


def residual_bytes(remat: bool) -> int:
    """What the backward pass keeps beside the weights."""
    loss, weights = loss_of(remat)
    pullback = jax.eval_shape(lambda w: jax.vjp(loss, w)[1], weights)
    sizes = [math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(pullback)]
    return sum(sizes) - sum(x.nbytes for x in weights.values())


def test_remat_gives_the_same_loss_and_gradients():
    plain, weights = loss_of(remat=False)
    value, grads = networks.jit(jax.value_and_grad(plain))(weights)
    again, again_grads = networks.jit(jax.value_and_grad(loss_of(remat=True)[0]))(weights)
    np.testing.assert_allclose(again, value, rtol=1e-6)
    assert grads.keys() == again_grads.keys()
    for name, grad in grads.items():
        # The same operations, fused otherwise: last-place differences, no more.
        np.testing.assert_allclose(
            again_grads[name], grad, rtol=0, atol=1e-5 * np.abs(grad).max(), err_msg=name
        )


def test_remat_keeps_a_fraction_of_the_activations():
    plain, remat = residual_bytes(False), residual_bytes(True)
    print(f"saved for the backward pass: {plain} bytes, with remat {remat} bytes")
    assert remat < plain / 3
