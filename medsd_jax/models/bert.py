"""BERT (arXiv 1810.04805), names as in transformers' BertModel.

Post-norm layers without a causal mask: every token sees every other. The papers' code feeds no
attention mask, so that padding is attended to as well; here too the mask is off unless it is given.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from medsd_jax.errors import UserError
from medsd_jax.models.attention import AttentionFn, auto_attention
from medsd_jax.models.bert_config import BertTextConfig
from medsd_jax.models.layers import LayerNorm, exact_products


class BertOutputs(NamedTuple):
    """What a BERT computes.

    Attributes:
        last_hidden_state: [B, S, D] float32.
        hidden_states: [layers + 1, B, S, D] float32: the embeddings, then each layer's output.
        pooler_output: [B, D] float32, tanh of a linear layer of the first token.
    """

    last_hidden_state: jax.Array
    hidden_states: jax.Array
    pooler_output: jax.Array


class BertEmbeddings(nnx.Module):
    """Word, position and token type embeddings, summed and normalised."""

    def __init__(self, config: BertTextConfig, *, dtype, rngs: nnx.Rngs):
        init, d = nnx.initializers.normal(config.initializer_range), config.hidden_size
        table = {"embedding_init": init, "dtype": dtype, "rngs": rngs}
        self.word_embeddings = nnx.Embed(config.vocab_size, d, **table)
        self.position_embeddings = nnx.Embed(config.max_position_embeddings, d, **table)
        self.token_type_embeddings = nnx.Embed(config.type_vocab_size, d, **table)
        self.LayerNorm = LayerNorm(d, epsilon=config.layer_norm_eps, dtype=dtype, rngs=rngs)

    def __call__(self, prompt_ids: jax.Array) -> jax.Array:
        """prompt_ids [B, S] -> [B, S, D]; a prompt is one segment, of token type 0."""
        positions = self.position_embeddings(jnp.arange(prompt_ids.shape[1]))
        segment = self.token_type_embeddings(jnp.zeros((1,), jnp.int32))
        return self.LayerNorm(self.word_embeddings(prompt_ids) + positions[None] + segment[None])


class BertSelfAttention(nnx.Module):
    """Multi-head attention before its output layer."""

    def __init__(self, config: BertTextConfig, *, attend: AttentionFn, dtype, rngs: nnx.Rngs):
        d = config.hidden_size
        self.heads, self.attend = config.num_attention_heads, attend
        self.query = nnx.Linear(d, d, dtype=dtype, rngs=rngs)
        self.key = nnx.Linear(d, d, dtype=dtype, rngs=rngs)
        self.value = nnx.Linear(d, d, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        """X [B, S, D], mask [B, S] bool or None -> [B, S, D]."""
        query, key, value = (
            layer(x).reshape(*x.shape[:-1], self.heads, -1)
            for layer in (self.query, self.key, self.value)
        )
        if mask is None:
            out = self.attend(query, key, value)
        else:
            out = jax.nn.dot_product_attention(
                query, key, value, mask=mask[:, None, None, :], implementation="xla"
            )
        return out.astype(x.dtype).reshape(x.shape)


class BertOutput(nnx.Module):
    """Linear layer, residual, norm: what ends the attention and the feed-forward."""

    def __init__(self, config: BertTextConfig, width: int, *, dtype, rngs: nnx.Rngs):
        d = config.hidden_size
        self.dense = nnx.Linear(width, d, dtype=dtype, rngs=rngs)
        self.LayerNorm = LayerNorm(d, epsilon=config.layer_norm_eps, dtype=dtype, rngs=rngs)

    def __call__(self, h: jax.Array, x: jax.Array) -> jax.Array:
        """H [B, S, width] and the residual x [B, S, D] -> [B, S, D]."""
        return self.LayerNorm(self.dense(h) + x)


class BertAttention(nnx.Module):
    """Self-attention and its output layer."""

    def __init__(self, config: BertTextConfig, *, attend: AttentionFn, dtype, rngs: nnx.Rngs):
        self.self = BertSelfAttention(config, attend=attend, dtype=dtype, rngs=rngs)
        self.output = BertOutput(config, config.hidden_size, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        """X [B, S, D], mask [B, S] bool or None -> [B, S, D]."""
        return self.output(self.self(x, mask), x)


class BertIntermediate(nnx.Module):
    """The wide layer of the feed-forward, with exact GELU."""

    def __init__(self, config: BertTextConfig, *, dtype, rngs: nnx.Rngs):
        self.dense = nnx.Linear(
            config.hidden_size, config.intermediate_size, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """X [B, S, D] -> [B, S, wide]."""
        return nnx.gelu(self.dense(x), approximate=False)


class BertLayer(nnx.Module):
    """Post-norm transformer layer."""

    def __init__(self, config: BertTextConfig, *, attend: AttentionFn, dtype, rngs: nnx.Rngs):
        self.attention = BertAttention(config, attend=attend, dtype=dtype, rngs=rngs)
        self.intermediate = BertIntermediate(config, dtype=dtype, rngs=rngs)
        self.output = BertOutput(config, config.intermediate_size, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        """X [B, S, D], mask [B, S] bool or None -> [B, S, D]."""
        x = self.attention(x, mask)
        return self.output(self.intermediate(x), x)


class BertEncoder(nnx.Module):
    """The stack of layers."""

    def __init__(self, config: BertTextConfig, *, attend: AttentionFn, dtype, rngs: nnx.Rngs):
        self.layer = nnx.List(
            [
                BertLayer(config, attend=attend, dtype=dtype, rngs=rngs)
                for _ in range(config.num_hidden_layers)
            ]
        )

    def __call__(self, x: jax.Array, mask: jax.Array | None) -> list[jax.Array]:
        """X [B, S, D], mask [B, S] bool or None -> x and every layer's [B, S, D]."""
        states = [x]
        for layer in self.layer:
            states.append(layer(states[-1], mask))
        return states


class BertPooler(nnx.Module):
    """One vector for a text. No hidden state, and so no diffusion loss, depends on it."""

    def __init__(self, config: BertTextConfig, *, dtype, rngs: nnx.Rngs):
        self.dense = nnx.Linear(config.hidden_size, config.hidden_size, dtype=dtype, rngs=rngs)

    def __call__(self, last: jax.Array) -> jax.Array:
        """Last hidden state [B, S, D] -> [B, D]."""
        return jnp.tanh(self.dense(last[:, 0]))


class BertModel(nnx.Module):
    """Prompt ids to hidden states."""

    def __init__(
        self,
        config: BertTextConfig,
        *,
        dtype=jnp.float32,
        attend: AttentionFn = auto_attention,
        rngs: nnx.Rngs,
    ):
        self.max_tokens, self.dtype = config.max_position_embeddings, dtype
        self.embeddings = BertEmbeddings(config, dtype=dtype, rngs=rngs)
        self.encoder = BertEncoder(config, attend=attend, dtype=dtype, rngs=rngs)
        self.pooler = BertPooler(config, dtype=dtype, rngs=rngs)

    def __call__(self, prompt_ids: jax.Array, attention_mask: jax.Array | None = None) -> jax.Array:
        """Last hidden state.

        Args:
            prompt_ids: [B, S] int32 in [0, vocab_size).
            attention_mask: [B, S], zero where a token must not be attended to; None: all are.

        Returns:
            [B, S, D] float32.

        Raises:
            UserError: S is above max_position_embeddings.
        """
        return self._states(prompt_ids, attention_mask)[-1].astype(jnp.float32)

    def kth_from_last(
        self, prompt_ids: jax.Array, k: int, attention_mask: jax.Array | None = None
    ) -> jax.Array:
        """The k-th hidden state from the last, [B, S, D] float32.

        Args:
            prompt_ids: as of a call, to which k = 1 is equal.
            k: in [1, layers + 1]; the largest gives the embeddings.
            attention_mask: as of a call.
        """
        return self._states(prompt_ids, attention_mask)[-k].astype(jnp.float32)

    @exact_products
    def outputs(
        self, prompt_ids: jax.Array, attention_mask: jax.Array | None = None
    ) -> BertOutputs:
        """Everything that a BERT computes; arguments and errors as of a call."""
        states = self._states(prompt_ids, attention_mask)
        return BertOutputs(
            states[-1].astype(jnp.float32),
            jnp.stack(states).astype(jnp.float32),
            self.pooler(states[-1]).astype(jnp.float32),
        )

    @exact_products
    def _states(self, prompt_ids: jax.Array, attention_mask: jax.Array | None) -> list[jax.Array]:
        tokens, most = prompt_ids.shape[1], self.max_tokens
        if tokens > most:
            raise UserError(f"prompts of {tokens} tokens: this text encoder knows {most} positions")
        mask = None if attention_mask is None else attention_mask.astype(bool)
        return self.encoder(self.embeddings(prompt_ids), mask)
