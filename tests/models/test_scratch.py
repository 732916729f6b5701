"""Random models start where training is easy: predicting zero, with finite everything."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from medsd_jax.models.params import abstract, bind, component
from medsd_jax.models.scratch import random_model
from medsd_jax.models.unet import UNet2DConditionModel
from tests.tiny_pipeline import tiny_pipeline


def make(seed: int):
    like = tiny_pipeline()
    return random_model(
        like.unet, like.vae, like.text_encoder, like.scheduler, like.tokenizer, jax.random.key(seed)
    )


def test_weights_are_those_of_the_shapes_and_follow_the_key():
    one, same, other = make(0), make(0), make(1)
    assert {k: x.shape for k, x in one.params.items()} == {
        k: x.shape for k, x in tiny_pipeline().params.items()
    }
    assert one.fingerprint() == same.fingerprint() != other.fingerprint()


def test_the_untrained_unet_predicts_zero_and_learns_everywhere_behind_it():
    model = make(0)
    graphdef, _ = abstract(functools.partial(UNet2DConditionModel, model.unet))
    latents = jax.random.normal(jax.random.key(1), (2, 8, 8, 4))
    context = jax.random.normal(jax.random.key(2), (2, 16, 32))
    predict = lambda p: bind(graphdef, p)(latents, jnp.array([3, 700]), context)  # noqa: E731
    weights = component(model.params, "unet")
    np.testing.assert_array_equal(jax.jit(predict)(weights), 0.0)
    grads = jax.jit(jax.grad(lambda p: jnp.mean(jnp.square(predict(p) - 1.0))))(weights)
    assert float(jnp.abs(grads["conv_out.kernel"]).max()) > 0.0
