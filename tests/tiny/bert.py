"""A folder of a tiny BERT as transformers writes it, made with numpy and safetensors alone."""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from medsd_jax.interop.torch_layout import to_torch
from medsd_jax.models.bert import BertModel
from medsd_jax.models.bert_config import BertTextConfig
from medsd_jax.models.scratch import random_params

WORDS = (
    "chest x ray - . , no finding large small left right pleural effusion pneumothorax view pa ap "
    "a photo of lung xray with visible the lungs are clear cardio ##megaly nod ##ule"
).split()
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]

CONFIG = BertTextConfig(
    vocab_size=len(VOCABULARY),
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=40,
)


def bert_params(config: BertTextConfig = CONFIG, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights by our names; norms and biases are no ones and zeros."""
    rng = np.random.default_rng(seed)
    make = functools.partial(BertModel, config)
    params = random_params(make, rng, embedding_std=0.5)
    noise = {k: rng.standard_normal(x.shape, np.float32) for k, x in params.items()}
    return {k: x + (0.1 * noise[k] if x.ndim == 1 else 0) for k, x in params.items()}


def write_bert(folder: Path, hidden_size: int = 32, seed: int = 0, **heads: np.ndarray) -> Path:
    """Writes config.json, model.safetensors and vocab.txt; `heads` are further tensors."""
    config = dataclasses.replace(CONFIG, hidden_size=hidden_size)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    tensors = {k: np.ascontiguousarray(x) for k, x in to_torch(bert_params(config, seed)).items()}
    save_file(tensors | heads, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
