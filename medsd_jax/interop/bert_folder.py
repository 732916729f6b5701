"""A BERT from a folder of transformers or from the hub, read without torch.

    config.json                    the shape
    model.safetensors              the weights, whole or sharded
    vocab.txt or tokenizer.json    the words; tokenizer_config.json beside them

What pre-training put on top of the encoder is left out; RadBERT, SapBERT, PubMedBERT and
ClinicalBERT differ in nothing else.
"""

import functools
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medsd_jax.errors import UserError
from medsd_jax.interop.hub_access import HUB_ID, cached_or_downloaded
from medsd_jax.interop.model_index import read_json
from medsd_jax.interop.safetensors_io import read_weights, weight_files
from medsd_jax.interop.tokenization import load_tokenizer, require_known_ids
from medsd_jax.interop.torch_layout import from_torch
from medsd_jax.interop.weight_names import choose_weights, require_variant, shard_files
from medsd_jax.models.bert import BertModel
from medsd_jax.models.bert_config import BertTextConfig
from medsd_jax.models.params import abstract
from medsd_jax.models.text_encoder import LoadedTextEncoder

_LOG = logging.getLogger(__name__)

_STEM = "model"
_TOKENIZER_FILES = ("vocab.txt", "tokenizer.json")
_SETTINGS = (*_TOKENIZER_FILES, "tokenizer_config.json", "special_tokens_map.json")
_HEADS = ("cls.", "classifier.", "qa_outputs.")
_CONSTANTS = ("embeddings.position_ids", "embeddings.token_type_ids")
_POOLER = ("pooler.dense.weight", "pooler.dense.bias")
_CASED_WORDS = 100


def load_bert(
    path_or_hub_id: str | os.PathLike,
    *,
    variant: str | None = None,
    dtype: np.typing.DTypeLike = np.float32,
) -> LoadedTextEncoder:
    """Reads a BERT of any kind: BertModel, or one of transformers' BertFor... classes.

    Args:
        path_or_hub_id: a folder, or a hub id "org/name". An existing folder wins.
        variant: of the weight files, such as "fp16".
        dtype: of the arrays returned.

    Raises:
        UserError: there is nothing of that name; another kind of model, such as RoBERTa; weights
            that are pickled, or that do not fit the config, all of which one line names.
    """
    folder = resolve_bert(path_or_hub_id, variant=variant)
    path = folder / "config.json"
    config = BertTextConfig.from_dict(read_json(path), str(path))
    tokenizer = load_tokenizer(folder, "BertTokenizer")
    require_known_ids(tokenizer, config.vocab_size, folder)
    _warn_of_lost_case(tokenizer, folder)
    params = read_bert_weights(folder, config, variant=variant, dtype=dtype)
    return LoadedTextEncoder(config, tokenizer, params)


def resolve_bert(path_or_hub_id: str | os.PathLike, *, variant: str | None = None) -> Path:
    """Finds the folder that a name stands for, downloading it where it must.

    Raises:
        UserError: see `load_bert`.
    """
    name = os.fspath(path_or_hub_id)
    path = Path(name).expanduser()
    if path.is_dir():
        if (path / "config.json").is_file():
            if variant:
                require_variant({"": {file.name for file in path.iterdir()}}, variant, str(path))
            return path
        if (path / "model_index.json").is_file() or (path / "model").is_dir():
            raise UserError(
                f"{path} is a Stable Diffusion model and no BERT; give the folder of a BERT "
                "encoder, or its hub id"
            )
        raise UserError(
            f"{path} is no folder of a BERT: it holds no config.json; `hf download org/name "
            "--local-dir FOLDER` leaves one"
        )
    if path.exists() or not HUB_ID.fullmatch(name):
        raise UserError(
            f"{name} is no folder; give one with config.json, model.safetensors and vocab.txt, or "
            "a hub id org/name"
        )
    return cached_or_downloaded(
        name,
        functools.partial(_incomplete, variant=variant),
        functools.partial(_needed, where=name, variant=variant),
    )


def read_bert_weights(
    folder: Path, config: BertTextConfig, *, variant: str | None, dtype: np.typing.DTypeLike
) -> dict[str, np.ndarray]:
    """Weights of the encoder itself, without a projection; errors as of `load_bert`."""
    tensors = _modern_bert(read_weights(folder, _STEM, variant=variant, dtype=dtype), folder)
    words = tensors.get("embeddings.word_embeddings.weight", np.zeros((0, 0))).shape
    # A width that the weights do not have is told below, before memory of its square is asked for.
    fits = words[1:] == (config.hidden_size,)
    if fits and not any(name in tensors for name in _POOLER):
        # Masked-language models have none. No hidden state reads it, so zeros change nothing.
        _LOG.info("%s: the file holds no pooler; its place is filled with zeros", folder)
        shapes = ((config.hidden_size, config.hidden_size), (config.hidden_size,))
        tensors |= {k: np.zeros(s, dtype) for k, s in zip(_POOLER, shapes, strict=True)}
    _, like = abstract(functools.partial(BertModel, config))
    return from_torch(tensors, like, str(folder))


def _modern_bert(tensors: Mapping[str, np.ndarray], folder: Path) -> dict[str, np.ndarray]:
    """Today's names of the encoder's own weights; says once what is left out."""
    heads = sorted({name.split(".")[0] for name in tensors if name.startswith(_HEADS)})
    if heads:
        count = sum(name.startswith(_HEADS) for name in tensors)
        _LOG.info(
            "%s: not loaded: %d weights of pre-training's heads (%s)",
            folder, count, ", ".join(heads),
        )  # fmt: skip
    modern = {}
    for name, x in tensors.items():
        if name.startswith(_HEADS):
            continue
        bare = name.removeprefix("bert.")
        # Files converted from TensorFlow call a norm's weights gamma and beta.
        bare = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", bare))
        if bare not in _CONSTANTS:
            modern[bare] = x
    return modern


def _warn_of_lost_case(tokenizer: Any, folder: Path) -> None:
    if not getattr(tokenizer, "do_lower_case", False):
        return
    cased = sum(word != word.lower() and word[0] != "[" for word in tokenizer.get_vocab())
    if cased > _CASED_WORDS:
        _LOG.warning(
            "%s: the vocabulary has %d words with capitals, but the tokenizer lowers all text, as "
            'transformers does where nothing says otherwise; write {"do_lower_case": false} into '
            "tokenizer_config.json if the model was trained on cased text",
            folder, cased,
        )  # fmt: skip


def _incomplete(folder: Path, variant: str | None) -> str:
    """Says what a cached snapshot lacks, or nothing."""
    if not (folder / "config.json").is_file():
        return "it lacks config.json"
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return "it lacks the tokenizer"
    try:
        if variant:
            require_variant({"": {file.name for file in folder.iterdir()}}, variant, str(folder))
        weight_files(folder, _STEM, variant=variant)
    except UserError as error:
        return str(error)
    return ""


def _needed(names: list[str], *, where: str, variant: str | None) -> list[str]:
    """The files of a repository that an encoder needs: one set of weights, no pickles."""
    if "config.json" not in names:
        raise UserError(f"{where} is no model of transformers: it has no config.json")
    top = [name for name in names if "/" not in name]
    if not any(name in top for name in _TOKENIZER_FILES):
        raise UserError(f"{where} has no tokenizer: none of {', '.join(_TOKENIZER_FILES)}")
    if variant:
        require_variant({"": top}, variant, where)
    chosen = choose_weights(top, _STEM, variant=variant, where=where)
    settings = [name for name in _SETTINGS if name in top]
    return ["config.json", *settings, chosen, *shard_files(top, _STEM, chosen)]
