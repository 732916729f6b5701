"""Weight files of one component: find, read and write safetensors, whole or sharded.

Names, with `stem` "diffusion_pytorch_model" (U-Net, VAE) or "model" (text encoder):

    stem.safetensors                         stem.fp16.safetensors
    stem.safetensors.index.json              stem.safetensors.index.fp16.json
    stem-00001-of-00002.safetensors          stem-00001-of-00002.fp16.safetensors

Nothing else is opened: other formats are refused by name, with the reason and the way out.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from medsd_jax.errors import UserError
from medsd_jax.files import save_tensors

WEIGHT_STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
"""Component -> the stem of its weight files."""

_PICKLED = (".bin", ".ckpt", ".pt", ".pth")
_READABLE = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"}


def choose_weights(
    names: Collection[str], stem: str, *, variant: str | None = None, where: str
) -> str:
    """Picks the weight file, or the index of its shards, among a folder's file names.

    The plain file is preferred; the fp16 file is taken where it is the only one, or on request.

    Args:
        names: the names of the files in the component's folder.
        stem: see `WEIGHT_STEMS`.
        variant: None, or the name of a variant such as "fp16", which must then exist.
        where: the folder's name, for the error.

    Returns:
        One of `names`.

    Raises:
        UserError: there is no such file; says which other files are there and what to do.
    """
    variants = (variant,) if variant else (None, "fp16")
    for candidate in (name for one in variants for name in _spellings(stem, one)):
        if candidate in names:
            return candidate
    raise UserError(f"{where}: {_why_no_weights(names, stem, variant)}")


def shard_files(
    names: Collection[str], stem: str, chosen: str, variant: str | None = None
) -> list[str]:
    """The shards that belong to what `choose_weights` chose among `names`; none where it is whole.

    For a listing of files that are not here yet: it goes by the names, not by the index.
    """
    if not chosen.endswith(".json"):
        return []
    # "model-00001-of-00002.safetensors"; of a variant, ".fp16" stands in one of two places.
    mark = "" if chosen == f"{stem}.safetensors.index.json" else f".{variant or 'fp16'}"
    shards = [f"{stem}-N-of-N{mark}.safetensors", f"{stem}{mark}-N-of-N.safetensors"]
    return [name for name in sorted(names) if re.sub(r"\d{5}", "N", name) in shards]


def weight_files(folder: Path, stem: str, *, variant: str | None = None) -> list[Path]:
    """Lists the safetensors files that together hold a component's weights; all of them exist."""
    files, _ = _files_and_index(folder, stem, variant)
    return files


def read_weights(
    folder: Path, stem: str, *, variant: str | None = None, dtype: np.typing.DTypeLike = np.float32
) -> dict[str, np.ndarray]:
    """Reads a component's weights, tensor by tensor, so that the peak is one copy of the model.

    Args:
        folder: the component's folder.
        stem: see `WEIGHT_STEMS`.
        variant: see `choose_weights`.
        dtype: floating tensors are cast to it; whole numbers keep their dtype.

    Returns:
        torch names -> arrays in torch's layout.

    Raises:
        UserError: no readable weights, a damaged file, or an index that its shards contradict.
    """
    files, index = _files_and_index(folder, stem, variant)
    tensors: dict[str, np.ndarray] = {}
    for file in files:
        for name, x in _read_file(file, np.dtype(dtype)):
            if name in tensors:
                raise UserError(f"{file}: {name} is in another shard too; download the model again")
            tensors[name] = x
    if index is not None and (odd := sorted(index["weight_map"].keys() ^ tensors.keys())):
        raise UserError(
            f"{folder}: the index and the shards disagree about {', '.join(odd)}; "
            "download the model again"
        )
    return tensors


def read_weights_file(
    path: Path, *, dtype: np.typing.DTypeLike = np.float32
) -> dict[str, np.ndarray]:
    """Reads one safetensors file; arguments, result and errors as of `read_weights`."""
    return dict(_read_file(path, np.dtype(dtype)))


def write_weights(
    folder: Path,
    filename: str,
    tensors: Mapping[str, np.ndarray],
    *,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes a component's weights as one file, or as shards and their index where they are larger.

    Args:
        folder: an existing folder.
        filename: "diffusion_pytorch_model.safetensors" or "model.safetensors".
        tensors: torch names -> arrays in torch's layout, of the dtype to store; views are fine.
        max_shard_bytes: no shard is larger, unless one tensor alone is.
    """
    assert filename.endswith(".safetensors"), filename
    shards = _split(tensors, max_shard_bytes)
    if len(shards) == 1:
        _write_file(folder / filename, shards[0], tensors)
        return
    stem = filename.removesuffix(".safetensors")
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        shard_name = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / shard_name, shard, tensors)
        weight_map.update(dict.fromkeys(shard, shard_name))
    total = sum(x.nbytes for x in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    text = json.dumps(index, indent=2, sort_keys=True) + "\n"
    (folder / f"{filename}.index.json").write_text(text, encoding="utf-8")


def _spellings(stem: str, variant: str | None = None) -> list[str]:
    if variant is None:
        return [f"{stem}.safetensors", f"{stem}.safetensors.index.json"]
    return [
        f"{stem}.{variant}.safetensors",
        f"{stem}.safetensors.index.{variant}.json",
        f"{stem}.{variant}.safetensors.index.json",
    ]


def _why_no_weights(names: Collection[str], stem: str, variant: str | None) -> str:
    if variant and any(name.startswith(stem) and name.endswith(".safetensors") for name in names):
        present = sorted(name for name in names if name.endswith(".safetensors"))
        return f"no {variant!r} variant of the weights (there: {', '.join(present)})"
    if pickled := sorted(name for name in names if name.endswith(_PICKLED)):
        return (
            f"only pickled weights ({', '.join(pickled)}): opening a pickle can run any code, so "
            "it is not read; where torch is installed, load the model with the library that wrote "
            "it (a pipeline with diffusers, an encoder with transformers) and write it with "
            "its save_pretrained(FOLDER), then give that FOLDER"
        )
    if flax := sorted(name for name in names if name.endswith(".msgpack")):
        return (
            f"only weights of the former Flax models ({', '.join(flax)}), whose names and layout "
            "are others; with diffusers 0.39 or older, load the model by from_pretrained(..., "
            "from_flax=True) and write it with save_pretrained(FOLDER), then give that FOLDER"
        )
    if other := sorted(name for name in names if name.endswith(".safetensors")):
        return (
            f"no {stem}.safetensors, but {', '.join(other)}; name the variant you want, "
            "or rename the file"
        )
    return f"no weights; expected {stem}.safetensors, found {', '.join(sorted(names)) or 'nothing'}"


def _files_and_index(
    folder: Path, stem: str, variant: str | None
) -> tuple[list[Path], dict | None]:
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    chosen = choose_weights(names, stem, variant=variant, where=str(folder))
    if not chosen.endswith(".json"):
        return [folder / chosen], None
    index = _read_index(folder / chosen)
    shards = sorted(set(index["weight_map"].values()))
    if absent := [shard for shard in shards if shard not in names]:
        raise UserError(
            f"{folder}: {chosen} names shards that are not there: {', '.join(absent)}; "
            "download the model again"
        )
    return [folder / shard for shard in shards], index


def _read_index(path: Path) -> dict:
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        shards = set(index["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not an index of safetensors shards ({error!r}); download it again"
        ) from error
    # An index comes from a stranger: it may only name safetensors files that lie beside it.
    for shard in shards:
        plain = isinstance(shard, str) and Path(shard).name == shard
        if not plain or not shard.endswith(".safetensors"):
            raise UserError(f"{path}: {shard!r} is not the name of a safetensors file beside it")
    return index


def _read_file(path: Path, dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():
                stored = file.get_slice(name).get_dtype()
                if stored not in _READABLE:
                    raise UserError(
                        f"{path}: {name} is stored as {stored}, which is not read; "
                        "save the model as float32, float16 or bfloat16"
                    )
                yield name, _cast(file.get_tensor(name), dtype)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} {_damage(path, error)}") from error


def _cast(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    is_float = np.issubdtype(x.dtype, np.floating) or x.dtype == ml_dtypes.bfloat16
    return x.astype(dtype, copy=False) if is_float else x


def _damage(path: Path, error: Exception) -> str:
    if path.is_file():
        with path.open("rb") as file:
            if file.read(24) == b"version https://git-lfs.":
                return "is a git-lfs pointer, not the weights; run `git lfs pull` in its repository"
    reason = " ".join(str(error).split())
    return f"is damaged or cut short ({reason}); download or write it again"


def _split(tensors: Mapping[str, np.ndarray], max_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, x in tensors.items():
        if shards[-1] and size + x.nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += x.nbytes
    return shards


def _write_file(path: Path, names: list[str], tensors: Mapping[str, np.ndarray]) -> None:
    # The raw buffer is stored: a transposed view would be written in the wrong order.
    contiguous = {name: np.ascontiguousarray(tensors[name]) for name in names}
    # torch's loaders refuse a file whose metadata does not name the format.
    save_tensors(path, contiguous, {"format": "pt"})
