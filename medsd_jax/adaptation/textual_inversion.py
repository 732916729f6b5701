"""Textual inversion (arXiv 2208.01618): only the embeddings of new tokens are trained.

The new tokens are the last rows of the token table, see interop/learned_embeddings.py. All other
rows, and all other weights, stay as they are to the bit: neither gradients nor weight decay see
them.
"""

import jax
import jax.numpy as jnp

from medsd_jax.adaptation.adaptation import Adaptation
from medsd_jax.arrays import Params


def textual_inversion(table: str, num_vectors: int) -> Adaptation:
    """Trains the last rows of a token table.

    Args:
        table: name of the table [V, D], e.g.
            "text_encoder.text_model.embeddings.token_embedding.embedding".
        num_vectors: how many rows.
    """
    rows = f"{table}.new_rows"

    def init(params: Params, rng: jax.Array) -> Params:
        del rng  # they start from a word that is there already
        assert num_vectors < len(params[table]), (num_vectors, table)
        return {rows: params[table][-num_vectors:]}

    def apply(frozen: Params, trainable: Params) -> Params:
        whole = jnp.asarray(frozen[table]).at[-num_vectors:].set(trainable[rows])
        return {**frozen, table: whole}

    return Adaptation(init, apply)
