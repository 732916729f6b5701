"""Random models start where training is easy: predicting zero, with finite everything."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from medsd_jax.models.clip import CLIPTextModel
from medsd_jax.models.params import abstract, bind, component
from medsd_jax.models.scratch import random_model, random_params
from medsd_jax.models.unet import UNet2DConditionModel
from tests.tiny.pipeline import tiny_pipeline


def make(seed: int):
    like = tiny_pipeline()
    return random_model(
        like.unet, like.vae, like.text_encoder, like.scheduler, like.tokenizer, seed
    )


def test_weights_are_those_of_the_shapes_and_follow_the_seed():
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


def test_each_kind_of_weight_has_its_distribution():
    like = tiny_pipeline()
    params = random_params(
        functools.partial(CLIPTextModel, like.text_encoder), np.random.default_rng(0), 0.5
    )
    layer = "text_model.encoder.layers.0.mlp."
    fan_in, fan_out = params[layer + "fc1.kernel"].shape
    # The sample deviation of n normal values spreads by 1 / sqrt(2 n): five of those.
    spread = 5 / np.sqrt(2 * fan_in * fan_out)
    assert abs(params[layer + "fc1.kernel"].std() * np.sqrt(fan_in) - 1) < spread
    assert abs(params["text_model.embeddings.token_embedding.embedding"].std() / 0.5 - 1) < 0.1
    np.testing.assert_array_equal(params[layer + "fc1.bias"], 0)
    np.testing.assert_array_equal(params["text_model.final_layer_norm.scale"], 1)
    assert {x.dtype for x in params.values()} == {np.dtype(np.float32)}
    first, second = (params[f"text_model.encoder.layers.{i}.mlp.fc1.kernel"] for i in (0, 1))
    assert not np.allclose(first, second)
