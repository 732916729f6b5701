"""Textual inversion (arXiv 2208.01618): only the embeddings of new tokens are trained.

Which rows of the token table are the new tokens', interop/learned_embeddings.py says. All other
rows, and all other weights, stay as they are to the bit: neither gradients nor weight decay see
them.
"""

import jax
import jax.numpy as jnp

from medsd_jax.adaptation.adaptation import Adaptation
from medsd_jax.arrays import Params


def textual_inversion(table: str, chosen: range) -> Adaptation:
    """Trains some rows of a token table.

    Args:
        table: name of the table [V, D], e.g.
            "text_encoder.text_model.embeddings.token_embedding.embedding".
        chosen: the rows, one after the other.
    """
    rows = f"{table}.new_rows"

    def init(params: Params, rng: jax.Array) -> Params:
        del rng  # they start from a word that is there already
        assert 0 < chosen.start < chosen.stop <= len(params[table]), (chosen, table)
        return {rows: params[table][chosen.start : chosen.stop]}

    def apply(frozen: Params, trainable: Params) -> Params:
        whole = jnp.asarray(frozen[table]).at[chosen.start : chosen.stop].set(trainable[rows])
        return {**frozen, table: whole}

    return Adaptation(init, apply)
