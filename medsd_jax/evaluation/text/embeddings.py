"""One vector for a text out of a text encoder, to ask what it knows of the text's findings.

    last    mean of the last hidden state over all S positions, padding included: what the U-Net
            attends to, as no mask is fed
    mean    mean of the last hidden state over the text: start token, words, end token
    cls     the last hidden state at one token: [CLS] of a BERT, the end of text of CLIP, which are
            the ones that see the whole text
    kth:N   as mean, of the N-th hidden state from the last; 1 is the last one. CLIP's final norm is
            applied to it, as diffusers does for clip_skip; a projection is not, it has no layers

last, mean and cls read a projected encoder behind its projection.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from medsd_jax.errors import UserError
from medsd_jax.interop.tokenization import encode_prompts
from medsd_jax.interrupts import stop_if_asked
from medsd_jax.models.bert_config import BertTextConfig
from medsd_jax.models.networks import graph
from medsd_jax.models.params import bind
from medsd_jax.models.text_encoder import LoadedTextEncoder
from medsd_jax.parallel.batching import filled

_AT_ONCE = 64


@dataclasses.dataclass(frozen=True)
class Pooling:
    """How hidden states become one vector; see the top of this file.

    Attributes:
        kind: "last", "mean", "cls" or "kth".
        k: of "kth": which state from the last, at least 1.
    """

    kind: str
    k: int = 1


def parse_pooling(text: str) -> Pooling:
    """Reads "last", "mean", "cls" or "kth:N".

    Raises:
        UserError: it is none of them.
    """
    kind, colon, number = text.partition(":")
    if not colon and kind in ("last", "mean", "cls"):
        return Pooling(kind)
    if kind == "kth" and number.isdecimal() and int(number) >= 1:
        return Pooling(kind, int(number))
    raise UserError(f"pooling {text!r} is none of last, mean, cls, kth:N with N at least 1")


def check_pooling(encoder: LoadedTextEncoder, pooling: Pooling, name: str) -> None:
    """Raises UserError where the encoder has no such hidden state."""
    states = encoder.config.num_hidden_layers + 1
    if pooling.k > states:
        raise UserError(f"pooling kth:{pooling.k}: {name} has {states} hidden states")


def embed_texts(
    encoder: LoadedTextEncoder,
    texts: Sequence[str],
    pooling: Pooling,
    *,
    attention_mask: bool = False,
    progress: bool = False,
) -> Float[np.ndarray, "n D"]:
    """Embeds texts; a text that is repeated is computed once.

    Args:
        encoder: a BERT or a CLIP text encoder with its tokenizer.
        texts: n of them; what does not fit into the tokenizer's length is cut, and said so.
        pooling: how.
        attention_mask: keep a BERT's tokens from attending to padding. CLIP's never do: its mask is
            causal, and padding comes last.
        progress: show a progress bar.

    Returns:
        [n, D] float32.

    Raises:
        UserError: the encoder gives numbers that are not finite.
    """
    distinct, place = np.unique(np.asarray(texts, object).astype(str), return_inverse=True)
    ids = encode_prompts(encoder.tokenizer, [str(text) for text in distinct])
    run = _embedder(encoder.config, pooling, attention_mask)
    params = jax.device_put(encoder.params)
    end = _end_id(encoder)
    vectors = []
    for start in tqdm(range(0, len(ids), _AT_ONCE), desc="embed", disable=not progress):
        stop_if_asked()
        batch = filled(ids[start : start + _AT_ONCE], _AT_ONCE)
        vectors.append(np.asarray(run(params, batch, end)))
    embedded = np.concatenate(vectors)[: len(ids)]
    if bad := np.flatnonzero(~np.isfinite(embedded).all(axis=1)).tolist():
        raise UserError(
            f"the text encoder gives numbers that are not finite (NaN or infinite) for {len(bad)} "
            f"of {len(embedded)} texts, such as {distinct[bad[0]][:60]!r}: take another copy of it"
        )
    return embedded[place]


def _end_id(encoder: LoadedTextEncoder) -> np.int32:
    is_bert = isinstance(encoder.config, BertTextConfig)
    tokenizer = encoder.tokenizer
    return np.int32(tokenizer.sep_token_id if is_bert else tokenizer.eos_token_id)


@functools.lru_cache(maxsize=8)
def _embedder(config, pooling: Pooling, attention_mask: bool):
    encoder = graph("text_encoder", config)
    is_bert = isinstance(config, BertTextConfig)

    def embed(params, ids: jax.Array, end: jax.Array) -> jax.Array:
        module = bind(encoder, params)
        # CLIP pads with its end token: the first one ends the text.
        last = jnp.argmax(ids == end, axis=1)
        inside = jnp.arange(ids.shape[1])[None] <= last[:, None]
        masked = (inside,) if is_bert and attention_mask else ()
        if pooling.kind == "kth":
            states = module.kth_from_last(ids, pooling.k, *masked)
        else:
            states = module(ids, *masked)
        if pooling.kind == "cls":
            at = jnp.zeros_like(last) if is_bert else last
            return jnp.take_along_axis(states, at[:, None, None], axis=1)[:, 0]
        weight = jnp.ones_like(inside) if pooling.kind == "last" else inside
        return jnp.mean(states, axis=1, where=weight[..., None])

    return jax.jit(embed)
