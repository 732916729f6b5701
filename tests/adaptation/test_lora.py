"""LoRA: starts at the model, adds alpha / r A B, and touches nothing else."""

import jax
import numpy as np
import pytest

from medsd_jax.adaptation.adaptation import frozen_params
from medsd_jax.adaptation.lora import LoraSettings, lora, matrix_names
from medsd_jax.errors import UserError

RNG = np.random.default_rng(0)
PARAMS = {
    "unet.attn.to_q.kernel": RNG.standard_normal((6, 4), np.float32),
    "unet.conv.kernel": RNG.standard_normal((3, 3, 4, 5), np.float32),
    "unet.conv.bias": RNG.standard_normal(5, np.float32),
    "text_encoder.fc1.kernel": RNG.standard_normal((4, 4), np.float32),
}


def adapt(patterns=(r"^unet\.",), rank=2, alpha=3.0):
    return lora(LoraSettings(tuple(patterns), rank, alpha))


def random_trainable(adaptation):
    started = adaptation.init(PARAMS, jax.random.key(0))
    return {k: RNG.standard_normal(x.shape).astype(np.float32) for k, x in started.items()}


def test_starts_at_the_model():
    adaptation = adapt()
    trainable = adaptation.init(PARAMS, jax.random.key(0))
    frozen = frozen_params(PARAMS, trainable)
    assert frozen.keys() == PARAMS.keys()
    for name, x in adaptation.apply(frozen, trainable).items():
        np.testing.assert_array_equal(x, PARAMS[name], err_msg=name)
    downs = [np.asarray(x) for k, x in trainable.items() if "lora_A" in k]
    assert all(x.std() > 0.05 for x in downs) and len(downs) == 2


def test_linear_difference_is_alpha_over_r_times_the_product():
    adaptation = adapt()
    trainable = random_trainable(adaptation)
    params = adaptation.apply(PARAMS, trainable)
    down, up = (trainable[name] for name in matrix_names("unet.attn.to_q.kernel"))
    expected = PARAMS["unet.attn.to_q.kernel"] + 1.5 * down @ up
    np.testing.assert_allclose(params["unet.attn.to_q.kernel"], expected, rtol=1e-5, atol=1e-6)
    for name in ("unet.conv.bias", "text_encoder.fc1.kernel"):
        assert params[name] is PARAMS[name]


def test_convolution_with_the_difference_is_the_two_convolutions():
    """x * (A B) = (x * A) * B, as PEFT computes it."""
    adaptation = adapt()
    trainable = random_trainable(adaptation)
    merged = adaptation.apply(PARAMS, trainable)["unet.conv.kernel"] - PARAMS["unet.conv.kernel"]
    down, up = (trainable[name] for name in matrix_names("unet.conv.kernel"))
    x = RNG.standard_normal((1, 5, 5, 4)).astype(np.float32)

    def convolve(x, kernel):
        dims = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=dims)

    np.testing.assert_allclose(
        convolve(x, merged), 1.5 * convolve(convolve(x, down), up), rtol=1e-4, atol=1e-4
    )


def test_a_poolers_kernel_is_left_alone():
    pooler = {"text_encoder.pooler.dense.kernel": np.ones((4, 4), np.float32)}
    trainable = adapt((r"^text_encoder\.",)).init(PARAMS | pooler, jax.random.key(0))
    assert {name.split(".lora")[0] for name in trainable} == {"text_encoder.fc1"}


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"rank": 0}, "lora_rank = 0"),
        ({"alpha": 0.0}, "lora_alpha = 0.0"),
        ({"patterns": ()}, "no train pattern"),
        ({"patterns": ("(",)}, "regular expression"),
        ({"patterns": (r"^unte\.",)}, r"\^unte"),
        ({"patterns": (r"bias$",)}, "none of the 3 kernels"),
    ],
)
def test_mistakes(settings, message):
    with pytest.raises(UserError, match=message):
        adapt(**settings).init(PARAMS, jax.random.key(0))
