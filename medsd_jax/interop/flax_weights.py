"""Weights of the former Flax models of diffusers and transformers, read as torch's state dicts.

    diffusion_flax_model.msgpack    of U-Net and VAE
    flax_model.msgpack              of text encoders; whole, or shards beside .msgpack.index.json

A file is a tree of arrays. Its paths are torch's names but for two rules: a list's number hangs on
the list's name by "_", and a leaf is called kernel, scale or embedding where torch says weight.
Kernels are laid out as ours are; see torch_layout.py.
"""

import mmap
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from flax.serialization import msgpack_restore

from medsd_jax.errors import UserError

_LISTS = re.compile(
    r"(down_blocks|up_blocks|attentions|resnets|downsamplers|upsamplers|transformer_blocks|to_out"
    r"|net)_(\d+)"
)
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
_TO_TORCH_AXES = {2: (1, 0), 4: (3, 2, 0, 1)}
_DEEPEST = 32  # names on a path; those of a U-Net have nine


def read_flax_weights(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Reads one msgpack file.

    Args:
        path: an existing file.

    Yields:
        torch names and arrays in torch's layout, of the dtype of the file.

    Raises:
        UserError: the file is damaged, or holds something else than a tree of arrays.
    """
    try:
        # The arrays are copies, so that the file need not lie in memory beside them.
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            tree = msgpack_restore(data)
    except Exception as error:  # msgpack, numpy and mmap each have errors of their own
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{path}, weights of the former Flax models, is damaged or cut short ({reason}); "
            "download or write it again"
        ) from error
    if not isinstance(tree, Mapping):
        raise UserError(
            f"{path} holds {_a(tree)} and no tree of weights; give a file that save_pretrained of "
            "a Flax model wrote"
        )
    if tree.keys() == {"params"} and isinstance(tree["params"], Mapping):
        tree = tree["params"]
    if not tree:
        raise UserError(f"{path} holds no weights at all; copy or download it again")
    for names, x in _leaves(tree, (), path):
        if names[-1] == "kernel" and x.ndim in _TO_TORCH_AXES:
            x = x.transpose(_TO_TORCH_AXES[x.ndim])
        yield torch_name(names), x


def torch_name(names: tuple[str, ...]) -> str:
    """The torch name of a path: ("resnets_0", "conv1", "kernel") is "resnets.0.conv1.weight"."""
    *head, leaf = names
    dotted = [re.sub(rf"^{_LISTS.pattern}$", r"\1.\2", name) for name in head]
    return ".".join([*dotted, _LEAVES.get(leaf, leaf)])


def _leaves(tree: Any, names: tuple, path: Path) -> Iterator[tuple[tuple[str, ...], np.ndarray]]:
    shown = "/".join(map(str, names))[:200]
    if len(names) > _DEEPEST:
        raise UserError(f"{path}: {shown} is nested too deep for a model; download it again")
    if isinstance(tree, Mapping):
        for name, below in tree.items():
            if not isinstance(name, str):
                raise UserError(f"{path}: {shown} holds a name that is no text: {str(name)[:80]!r}")
            yield from _leaves(below, (*names, name), path)
    elif isinstance(tree, np.ndarray) and _is_number(tree.dtype):
        yield names, tree
    else:
        raise UserError(
            f"{path}: {shown} is {_a(tree)}; a model's file holds arrays of numbers alone"
        )


def _is_number(dtype: np.dtype) -> bool:
    return dtype.kind in "fiub" or dtype == ml_dtypes.bfloat16


def _a(value: Any) -> str:
    kind = f"array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"
