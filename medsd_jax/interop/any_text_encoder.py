"""A text encoder on its own, whatever it lies in: a Stable Diffusion model, or a BERT's folder."""

import os
from pathlib import Path

import numpy as np

from medsd_jax.interop.bert_folder import load_bert
from medsd_jax.interop.hub import MOVED, resolve
from medsd_jax.interop.hub_access import HUB_ID, holds
from medsd_jax.interop.model_index import check_index, read_text_classes
from medsd_jax.interop.text_encoder_folder import read_text_encoder
from medsd_jax.models.text_encoder import LoadedTextEncoder


def load_text_encoder(
    path_or_hub_id: str | os.PathLike, *, max_length: int, variant: str | None = None
) -> LoadedTextEncoder:
    """Reads a text encoder and its tokenizer.

    Args:
        path_or_hub_id: a diffusers folder, a training workdir or a hub id of either, whose text
            encoder is meant; or a folder or hub id of a BERT.
        max_length: tokens of a text for a BERT, at most its positions. A model has its own.
        variant: of the weight files, such as "fp16".

    Raises:
        UserError: it is neither, or cannot be used.
    """
    if not _is_pipeline(path_or_hub_id):
        bert = load_bert(path_or_hub_id, variant=variant)
        bert.tokenizer.model_max_length = min(max_length, bert.config.max_position_embeddings)
        return bert
    folder = resolve(path_or_hub_id, variant=variant)
    index = folder / "model_index.json"
    check_index(index)
    return read_text_encoder(folder, read_text_classes(index), variant, np.dtype(np.float32))


def _is_pipeline(path_or_hub_id: str | os.PathLike) -> bool:
    name = os.fspath(path_or_hub_id)
    path = Path(name).expanduser()
    if path.is_dir():
        return any((folder / "model_index.json").is_file() for folder in (path, path / "model"))
    return bool(HUB_ID.fullmatch(name)) and (name in MOVED or holds(name, "model_index.json"))
