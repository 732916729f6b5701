"""Textual inversion trains the word's rows of the token table, and no other number."""

import jax
import numpy as np

from medsd_jax.adaptation.adaptation import frozen_params
from medsd_jax.adaptation.textual_inversion import textual_inversion

TABLE = "text_encoder.token_embedding.embedding"
PARAMS = {TABLE: np.arange(12, dtype=np.float32).reshape(4, 3), "unet.bias": np.ones(2)}


def test_only_the_new_rows_are_trained():
    adaptation = textual_inversion(TABLE, range(2, 4))
    trainable = adaptation.init(PARAMS, jax.random.key(0))
    ((_, rows),) = trainable.items()
    np.testing.assert_array_equal(rows, PARAMS[TABLE][2:])
    moved = {name: x + 100 for name, x in trainable.items()}
    params = adaptation.apply(frozen_params(PARAMS, moved), moved)
    assert params.keys() == PARAMS.keys()
    np.testing.assert_array_equal(params[TABLE][:2], PARAMS[TABLE][:2])
    np.testing.assert_array_equal(params[TABLE][2:], PARAMS[TABLE][2:] + 100)
    assert params["unet.bias"] is PARAMS["unet.bias"]


def test_gradient_reaches_all_new_rows():
    adaptation = textual_inversion(TABLE, range(2, 4))
    trainable = adaptation.init(PARAMS, jax.random.key(0))
    loss = lambda rows: (adaptation.apply(PARAMS, rows)[TABLE] ** 2).sum()  # noqa: E731
    ((_, grad),) = jax.grad(loss)(trainable).items()
    np.testing.assert_array_equal(grad, 2 * PARAMS[TABLE][2:])


def test_rows_behind_the_word_stay():
    """A table may be longer than the tokenizer needs."""
    adaptation = textual_inversion(TABLE, range(1, 2))
    trainable = adaptation.init(PARAMS, jax.random.key(0))
    moved = {name: x + 100 for name, x in trainable.items()}
    table = np.asarray(adaptation.apply(frozen_params(PARAMS, moved), moved)[TABLE])
    np.testing.assert_array_equal(table[[0, 2, 3]], PARAMS[TABLE][[0, 2, 3]])
    np.testing.assert_array_equal(table[1], PARAMS[TABLE][1] + 100)
