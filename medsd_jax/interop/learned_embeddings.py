"""New words of a model: tokens with embeddings of their own, and the small file that holds them.

The file is the one that diffusers' `load_textual_inversion` reads: safetensors with one entry,
token -> [k, D]. A word of k vectors is k tokens, "<x>", "<x>_1", ..., and stands in prompts as
"<x>" alone: tokenization.py spells it out, as diffusers does.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medsd_jax.errors import UserError
from medsd_jax.files import save_tensors
from medsd_jax.interop.safetensors_io import read_weights_file, require_finite
from medsd_jax.models.stable_diffusion import StableDiffusion

EMBEDDINGS_FILE = "learned_embeds.safetensors"
_TABLES = (
    "text_encoder.text_model.embeddings.token_embedding.embedding",  # CLIP
    "text_encoder.embeddings.word_embeddings.embedding",  # BERT
)


def add_word(
    model: StableDiffusion, word: str, *, like: str, num_vectors: int = 1
) -> StableDiffusion:
    """Gives a model a new word, whose embeddings start as those of a known one.

    Args:
        model: with weights on the host.
        word: e.g. "<lung-xray>".
        like: a word that is one token, e.g. "photo".
        num_vectors: k, tokens of the word.

    Raises:
        UserError: the word is there already, or `like` is not one token.
    """
    ids = model.tokenizer(like, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        pieces = model.tokenizer.convert_ids_to_tokens(ids)
        raise UserError(
            f"the new word shall start as {like!r}, which is {len(ids)} tokens {pieces}"
        )
    start = np.asarray(model.params[token_table(model.params)])[ids[0]]
    return with_embeddings(model, word, np.repeat(start[None], num_vectors, axis=0))


def with_embeddings(model: StableDiffusion, word: str, rows: np.ndarray) -> StableDiffusion:
    """The model with a new word of these embeddings, [k, D], the last rows of its token table.

    Raises:
        UserError: the word is there already, is no single piece of text, or D is another one.
    """
    if rows.ndim != 2 or not len(rows) or rows.shape[1] != model.text_encoder.hidden_size:
        raise UserError(
            f"embeddings of {word!r} have shape {list(rows.shape)}: this text encoder needs "
            f"[k, {model.text_encoder.hidden_size}]"
        )
    if not word.strip() or word != word.strip():
        raise UserError(f"a new word must be text without space around it, not {word!r}")
    tokenizer = copy.deepcopy(model.tokenizer)
    tokens = tokens_of(word, len(rows))
    known = tokenizer.get_vocab()
    if taken := [token for token in tokens if token in known]:
        raise UserError(
            f"the placeholder token {taken[0]!r} exists already in this model's tokenizer: choose "
            "another one"
        )
    table_name = token_table(model.params)
    table = np.asarray(model.params[table_name])
    if len(tokenizer) != len(table):
        raise UserError(
            f"the tokenizer knows {len(tokenizer)} tokens but the text encoder {len(table)}: no "
            "word can be added"
        )
    tokenizer.add_tokens(tokens)
    assert tokenizer.convert_tokens_to_ids(tokens) == list(
        range(len(table), len(table) + len(rows))
    ), tokens
    params = {**model.params, table_name: np.concatenate([table, rows.astype(table.dtype)])}
    text_encoder = replace(model.text_encoder, vocab_size=len(table) + len(rows))
    return replace(model, params=params, text_encoder=text_encoder, tokenizer=tokenizer)


def token_table(params: Mapping[str, Any]) -> str:
    """The name of the text encoder's token table [V, D]."""
    return next(name for name in _TABLES if name in params)


def tokens_of(word: str, num_vectors: int) -> list[str]:
    """The tokens of a word of k vectors: "<x>", "<x>_1", ..., "<x>_{k-1}"."""
    return [word, *(f"{word}_{i}" for i in range(1, num_vectors))]


def write_embeddings(folder: Path, word: str, params: Mapping[str, Any], num_vectors: int) -> None:
    """Writes the last rows of the token table as `EMBEDDINGS_FILE`."""
    rows = np.ascontiguousarray(np.asarray(params[token_table(params)], np.float32)[-num_vectors:])
    save_tensors(folder / EMBEDDINGS_FILE, {word: rows}, {"format": "pt"})


def read_embeddings(path: Path) -> tuple[str, np.ndarray]:
    """Reads a word and its embeddings [k, D] float32.

    Args:
        path: the file, or a folder with `EMBEDDINGS_FILE`.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    path = path / EMBEDDINGS_FILE if path.is_dir() else path
    tensors = read_weights_file(path)
    if len(tensors) != 1:
        raise UserError(
            f"{path} holds {len(tensors)} tensors; a file of learnt embeddings holds one word's"
        )
    ((word, rows),) = tensors.items()
    require_finite(word, rows, str(path))
    return word, np.atleast_2d(rows)
