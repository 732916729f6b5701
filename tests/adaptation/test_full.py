"""Which weights full fine-tuning trains, and that nothing is copied."""

import jax
import numpy as np
import pytest

from medsd_jax.adaptation.adaptation import frozen_params
from medsd_jax.adaptation.full import full
from medsd_jax.errors import UserError

NAMES = ("unet.conv_in.kernel", "unet.time.bias", "vae.conv_in.kernel", "text_encoder.unet.bias")
PARAMS = {name: np.full(2, i, np.float32) for i, name in enumerate(NAMES)}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ((r"^unet\.",), NAMES[:2]),
        ((r"^unet\.", r"^text_encoder\."), (*NAMES[:2], NAMES[3])),
        ((r"^unet\..*kernel$",), NAMES[:1]),
        ((r"bias",), (NAMES[1], NAMES[3])),
        (("",), NAMES),
    ],
)
def test_patterns(patterns, expected):
    adaptation = full(patterns)
    trainable = adaptation.init(PARAMS, jax.random.key(0))
    frozen = frozen_params(PARAMS, trainable)
    assert tuple(trainable) == expected
    assert frozen.keys() == PARAMS.keys() - trainable.keys()
    # The same arrays: at full size a copy is gigabytes.
    assert all(trainable[name] is PARAMS[name] for name in trainable)
    assert all(frozen[name] is PARAMS[name] for name in frozen)
    assert adaptation.apply(frozen, trainable) == PARAMS


def test_trained_weights_take_the_place_of_the_models():
    adaptation = full((r"^vae\.",))
    trainable = {name: x + 1 for name, x in adaptation.init(PARAMS, None).items()}
    params = adaptation.apply(frozen_params(PARAMS, trainable), trainable)
    assert params[NAMES[2]][0] == 3 and params[NAMES[0]][0] == 0


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ((r"^unet\.", r"^controlnet\."), "controlnet"),
        (("unet.(",), "regular expression"),
        ((), "nothing would be trained"),
    ],
)
def test_wrong_patterns(patterns, message):
    with pytest.raises(UserError, match=message):
        full(patterns).init(PARAMS, jax.random.key(0))


def test_a_berts_pooler_is_never_trained():
    params = PARAMS | {
        f"text_encoder.pooler.dense.{leaf}": np.ones(2, np.float32) for leaf in ("kernel", "bias")
    }
    for patterns in ((r"^text_encoder\.",), ("",)):
        trainable = full(patterns).init(params, jax.random.key(0))
        assert not any("pooler" in name for name in trainable)
        assert "text_encoder.unet.bias" in trainable
    with pytest.raises(UserError, match="pooler alone"):
        full((r"^unet\.", r"pooler")).init(params, jax.random.key(0))
