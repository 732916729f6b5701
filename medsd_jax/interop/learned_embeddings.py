"""Placeholder tokens: tokens with embeddings of their own, and the small file that holds them.

The file is the one that diffusers' `load_textual_inversion` reads: safetensors with one entry,
token -> [k, D]. A placeholder token of k vectors is k tokens, "<x>", "<x>_1", ..., and stands in
prompts as "<x>" alone: tokenization.py spells it out, as diffusers does. A1111 and kohya write the
role `emb_params` where diffusers writes the token; there the token is the file's name.
"""

import copy
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medsd_jax.errors import UserError
from medsd_jax.files import save_tensors
from medsd_jax.interop.safetensors_io import file_in_folder, read_weights_file, require_finite
from medsd_jax.interop.tokenization import spelled_out
from medsd_jax.models.stable_diffusion import StableDiffusion

_LOG = logging.getLogger(__name__)

EMBEDDINGS_FILE = "learned_embeds.safetensors"
_ROLES = ("emb_params", "*", "clip_l")
"""What other programs write in the place of the token; their token is the name of the file."""
_SDXL = {"clip_l", "clip_g"}
_TABLES = (
    "text_encoder.text_model.embeddings.token_embedding.embedding",  # CLIP
    "text_encoder.embeddings.word_embeddings.embedding",  # BERT
)


def add_placeholder_token(
    model: StableDiffusion, placeholder_token: str, *, initializer_token: str, num_vectors: int = 1
) -> StableDiffusion:
    """Gives a model a placeholder token, whose embeddings start as those of a known one.

    Args:
        model: with weights on the host.
        placeholder_token: e.g. "<lung-xray>".
        initializer_token: a word of the vocabulary that is one token, e.g. "photo".
        num_vectors: k, tokens that it stands for.

    Raises:
        UserError: the token is there already, or `initializer_token` is not one token.
    """
    ids = model.tokenizer(initializer_token, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        pieces = model.tokenizer.convert_ids_to_tokens(ids)
        raise UserError(
            f"the placeholder token shall start as {initializer_token!r}, which is {len(ids)} "
            f"tokens {pieces}"
        )
    _check_length(model, placeholder_token, num_vectors)
    start = np.asarray(model.params[token_table(model.params)])[ids[0]]
    return with_embeddings(model, placeholder_token, np.repeat(start[None], num_vectors, axis=0))


def with_embeddings(
    model: StableDiffusion, placeholder_token: str, rows: np.ndarray
) -> StableDiffusion:
    """The model with a placeholder token of these embeddings, [k, D], in the rows of its tokens.

    Some text encoders have more rows than their tokenizer has tokens, up to a round number: the
    tokens take those rows first, as in diffusers.

    Raises:
        UserError: the token is there already, is no single piece of text, or D is another one.
    """
    if rows.ndim != 2 or not len(rows) or rows.shape[1] != model.text_encoder.hidden_size:
        raise UserError(
            f"embeddings of {placeholder_token!r} have shape {list(rows.shape)}: this text encoder "
            f"needs [k, {model.text_encoder.hidden_size}]"
        )
    if not placeholder_token.strip() or placeholder_token != placeholder_token.strip():
        raise UserError(
            f"a placeholder token must be text without space around it, not {placeholder_token!r}"
        )
    _check_length(model, placeholder_token, len(rows))
    tokenizer = copy.deepcopy(model.tokenizer)
    tokens = tokens_of(placeholder_token, len(rows))
    known = tokenizer.get_vocab()
    if taken := [token for token in tokens if token in known]:
        raise UserError(
            f"the placeholder token {taken[0]!r} exists already in this model's tokenizer: choose "
            "another token (FILE:TOKEN, or adaptation.placeholder_token of a recipe)"
        )
    table_name = token_table(model.params)
    table = np.asarray(model.params[table_name])
    if len(tokenizer(placeholder_token, add_special_tokens=False)["input_ids"]) == 1:
        _LOG.warning(
            "the placeholder token %r is an old one, too: all of these letters in a prompt now "
            "mean the new one, inside of longer words as well; choose a word that no text holds "
            "(FILE:TOKEN)",
            placeholder_token,
        )
    before = {token: _ids_of(tokenizer, token) for token in tokenizer.get_added_vocab()}
    tokenizer.add_tokens(tokens)
    for token, ids in (
        before | {placeholder_token: tokenizer.convert_tokens_to_ids(tokens)}
    ).items():
        if _ids_of(tokenizer, token) != ids:
            raise UserError(
                f"the placeholder token {placeholder_token!r} cannot be told from those that this "
                f"model's tokenizer has ({token!r} would be read as another one): choose another "
                "token"
            )
    first = token_rows(tokenizer, placeholder_token, len(rows)).start
    if first != len(known) or first > len(table):
        raise UserError(
            f"the tokenizer has {len(known)} tokens, but the next one would be number {first}, of "
            f"a text encoder with {len(table)}: no token can be added to this model"
        )
    end = first + len(rows)
    rows = rows.astype(table.dtype)
    params = {**model.params, table_name: np.concatenate([table[:first], rows, table[end:]])}
    text_encoder = replace(model.text_encoder, vocab_size=len(params[table_name]))
    return replace(model, params=params, text_encoder=text_encoder, tokenizer=tokenizer)


def _ids_of(tokenizer: Any, prompt: str) -> list[int]:
    return tokenizer(spelled_out(tokenizer, prompt), add_special_tokens=False)["input_ids"]


def _check_length(model: StableDiffusion, placeholder_token: str, num_vectors: int) -> None:
    room = model.tokenizer.model_max_length - 2  # start and end
    if num_vectors > room:
        raise UserError(
            f"a placeholder token of {num_vectors} vectors, {placeholder_token!r}, does not fit "
            f"into a prompt, which has room for {room} tokens: take fewer"
        )


def token_table(params: Mapping[str, Any]) -> str:
    """The name of the text encoder's token table [V, D]."""
    return next(name for name in _TABLES if name in params)


def tokens_of(placeholder_token: str, num_vectors: int) -> list[str]:
    """The tokens of a placeholder token of k vectors: "<x>", "<x>_1", ..., "<x>_{k-1}"."""
    return [placeholder_token, *(f"{placeholder_token}_{i}" for i in range(1, num_vectors))]


def token_rows(tokenizer: Any, placeholder_token: str, num_vectors: int) -> range:
    """The rows of a placeholder token of k vectors in the token table."""
    ids = tokenizer.convert_tokens_to_ids(tokens_of(placeholder_token, num_vectors))
    rows = range(ids[0], ids[0] + num_vectors)
    assert ids == list(rows), (placeholder_token, ids)
    return rows


def write_embeddings(
    folder: Path, placeholder_token: str, model: StableDiffusion, num_vectors: int
) -> None:
    """Writes the rows of a placeholder token as `EMBEDDINGS_FILE`."""
    rows = token_rows(model.tokenizer, placeholder_token, num_vectors)
    table = np.asarray(model.params[token_table(model.params)], np.float32)
    chosen = np.ascontiguousarray(table[rows.start : rows.stop])
    save_tensors(folder / EMBEDDINGS_FILE, {placeholder_token: chosen}, {"format": "pt"})


def read_embeddings(path: Path, placeholder_token: str | None = None) -> tuple[str, np.ndarray]:
    """Reads a placeholder token and its embeddings [k, D] float32.

    Args:
        path: the file, or a folder with `EMBEDDINGS_FILE` or with one safetensors file.
        placeholder_token: instead of the file's own.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    if path.is_dir():
        path = file_in_folder(path, (EMBEDDINGS_FILE,), "the embedding")
    tensors = read_weights_file(path)
    if tensors.keys() == _SDXL:
        raise UserError(
            f"{path} holds clip_l and clip_g: it is a textual inversion of SDXL, which has two "
            "text encoders; take one of Stable Diffusion 1 or 2"
        )
    if len(tensors) != 1:
        raise UserError(
            f"{path} holds {len(tensors)} tensors; a file of learnt embeddings holds one token's"
        )
    ((name, rows),) = tensors.items()
    require_finite(name, rows, str(path))
    if rows.ndim not in (1, 2) or not rows.size or rows.dtype.kind != "f":
        raise UserError(
            f"{path}: {name} is {rows.dtype} {list(rows.shape)}; learnt embeddings are floating "
            "[k, width]"
        )
    placeholder_token = placeholder_token or (path.stem if name in _ROLES else name)
    rows = np.atleast_2d(rows)
    size = f"{len(rows)} vector" + "s" * (len(rows) > 1)
    _LOG.info(
        "%s: the placeholder token %r of %s, to be written in prompts",
        path,
        placeholder_token,
        size,
    )
    return placeholder_token, rows
