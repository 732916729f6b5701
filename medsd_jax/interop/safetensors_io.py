"""Weight files of one component: read and write safetensors, whole or sharded.

Which files they are is weight_names.py's business. What is no safetensors file is named as what it
is: a pickle, a page of the web, a pointer of git-lfs, nothing at all.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from medsd_jax.errors import UserError
from medsd_jax.files import save_tensors, write_json
from medsd_jax.interop.flax_weights import read_flax_weights, torch_name
from medsd_jax.interop.model_index import read_json
from medsd_jax.interop.weight_names import PICKLED, choose_weights

MSGPACK = ".msgpack"
"""The suffix of weights of the former Flax models."""
_READABLE = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"}
_KINDS = (
    (
        b"version https://git-lfs.",
        "is a git-lfs pointer, not the weights; run `git lfs pull` in its repository",
    ),
    (b"GGUF", "is a GGUF file; give the model as safetensors"),
    (b"\x89HDF", "is a file of HDF5 (Keras); give the model as safetensors"),
    (b"<!doctype html", "is a page of the web and no weights; download the file itself"),
    (b"<html", "is a page of the web and no weights; download the file itself"),
)
"""How files that are taken for safetensors begin, in lower case, and what they are."""


def weight_files(folder: Path, stem: str, *, variant: str | None = None) -> list[Path]:
    """Lists the files that together hold a component's weights; all of them exist."""
    files, _ = _files_and_index(folder, stem, variant)
    return files


def read_weights(
    folder: Path, stem: str, *, variant: str | None = None, dtype: np.typing.DTypeLike = np.float32
) -> dict[str, np.ndarray]:
    """Reads a component's weights, tensor by tensor, so that the peak is one copy of the model.

    Args:
        folder: the component's folder.
        stem: see `weight_names.WEIGHT_STEMS`.
        variant: see `weight_names.choose_weights`.
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
    if index is not None and (odd := sorted(_indexed(index, files) ^ tensors.keys())):
        listed = ", ".join(odd[:3]) + (", ..." if len(odd) > 3 else "")
        raise UserError(
            f"{folder}: the index and the shards disagree about {listed} ({len(odd)} weights in "
            "all); download the model again"
        )
    return tensors


def read_weights_file(
    path: Path, *, dtype: np.typing.DTypeLike = np.float32
) -> dict[str, np.ndarray]:
    """Reads one safetensors file; arguments, result and errors as of `read_weights`."""
    return dict(_read_file(path, np.dtype(dtype)))


def file_in_folder(folder: Path, names: Sequence[str], what: str) -> Path:
    """The one weight file of a folder, for what is usually a file of its own.

    Args:
        folder: an existing folder.
        names: taken in this order where they are there; else the folder's only weight file.
        what: "a LoRA", for the message.

    Raises:
        UserError: there is no such file, or several.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    others = sorted(path.name for path in folder.iterdir() if path.suffix == ".safetensors")
    # A pickle is named as one when it is opened.
    others = others or sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
    if len(others) == 1:
        return folder / others[0]
    listed = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
    raise UserError(
        f"{folder}: which file is {what}? There is no {names[0]}, and "
        + (f"{len(others)} others ({listed}): " if others else "no other safetensors file: ")
        + "give the file itself"
    )


@contextlib.contextmanager
def open_safetensors(path: Path) -> Iterator[safe_open]:
    """Opens one safetensors file, for its names, tensors (numpy) and metadata.

    Args:
        path: the file, whatever its name.

    Raises:
        UserError: it is missing, a folder, of another format (a pickle is named as one), or
            damaged; inside the block, also what a damaged file gives away later.
    """
    if problem := _other_kind(path):
        raise UserError(f"{path} {problem}")
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except PermissionError as error:
        raise UserError(f"{path} may not be read by this user; change its permissions") from error
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} is damaged or cut short ({reason}); download or write it again"
        ) from error


def require_finite(name: str, x: np.ndarray, where: str) -> None:
    """Raises UserError where a weight holds NaN or an infinite number.

    Args:
        name: of the weight, for the message.
        x: an array of any dtype.
        where: the file or the folder of the component, for the message.
    """
    if x.dtype.kind not in "fV" or (finite := np.isfinite(x)).all():  # V: bfloat16
        return
    bad = x.size - int(finite.sum())
    raise UserError(
        f"{where}: {name} holds {bad} of {x.size} values that are not finite (NaN or infinite), so "
        "no image can come of it; the training that wrote it diverged, or the file is damaged: "
        "take an earlier or another copy"
    )


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
    write_json(folder / f"{filename}.index.json", index)


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


def _indexed(index: dict, files: Sequence[Path]) -> set[str]:
    """The torch names of the weights that an index lists."""
    names = set(index["weight_map"])
    if files[0].suffix != MSGPACK:
        return names
    return {torch_name(tuple(name.split("/"))) for name in names}


def _read_index(path: Path) -> dict:
    index = read_json(path)
    try:
        shards = set(index["weight_map"].values())
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not an index of safetensors shards ({error!r}); download it again"
        ) from error
    if not shards:
        raise UserError(f"{path} names no weight files; download it again")
    # An index comes from somebody else: it may only name weight files that lie beside it.
    suffix = MSGPACK if f"{MSGPACK}." in path.name else ".safetensors"
    for shard in shards:
        plain = isinstance(shard, str) and Path(shard).name == shard
        if not plain or not shard.endswith(suffix):
            raise UserError(f"{path}: {shard!r} is not the name of a {suffix[1:]} file beside it")
    return index


def _read_file(path: Path, dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
    if path.suffix == MSGPACK:
        if problem := _other_kind(path):
            raise UserError(f"{path} {problem}")
        for name, x in read_flax_weights(path):
            yield name, cast_weight(name, x, dtype, str(path))
        return
    with open_safetensors(path) as file:
        for name in file.keys():
            stored = file.get_slice(name).get_dtype()
            if stored not in _READABLE:
                raise UserError(
                    f"{path}: {name} is stored as {stored}, which is not read; "
                    "save the model as float32, float16 or bfloat16"
                )
            try:
                x = file.get_tensor(name)
            except ValueError as error:  # sides whose product numpy does not hold, one of them 0
                raise UserError(
                    f"{path}: {name} has a shape that cannot be ({error}); download it again"
                ) from error
            yield name, cast_weight(name, x, dtype, str(path))


def cast_weight(name: str, x: np.ndarray, dtype: np.dtype, where: str) -> np.ndarray:
    """Gives a weight the dtype asked for; whole numbers keep theirs.

    Raises:
        UserError: a value that is finite in the file would not be in `dtype`.
    """
    is_float = np.issubdtype(x.dtype, np.floating) or x.dtype == ml_dtypes.bfloat16
    if not is_float or x.dtype == dtype:
        return x
    with np.errstate(over="ignore"):
        y = x.astype(dtype)
    if dtype == np.float16 and np.isinf(y).sum() != np.isinf(x).sum():
        raise UserError(
            f"{where}: {name} has values beyond float16's range; read it as bfloat16 or float32"
        )
    return y


def _other_kind(path: Path) -> str:
    """What a file is that is no safetensors file, and the way out; empty where it may be one."""
    try:
        if path.is_dir():
            return "is a folder; give the file in it"
        with path.open("rb") as file:
            start = file.read(4096)
    except FileNotFoundError:
        return "is missing; check the name, or download the file again"
    except PermissionError:
        return "may not be read by this user; change its permissions"
    except OSError as error:  # such as a loop of links
        return f"cannot be read ({error.strerror}); check the path"
    for beginning, kind in _KINDS:
        if start.lower().startswith(beginning.lower()):
            return kind
    if _looks_pickled(path, start):
        return (
            "is a pickle of torch: opening one can run any code, so it is not read; where torch is "
            "installed, convert it once: torch.load(FILE, weights_only=True), then "
            "safetensors.torch.save_file, and give that .safetensors file"
        )
    return ""


def _looks_pickled(path: Path, start: bytes) -> bool:
    """By its first bytes: a zip archive, pickle's protocol 2 to 5, or a suffix without header."""
    if path.suffix == MSGPACK:
        return False  # such a tree may begin alike
    protocol = start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5")
    if start[:4] == b"PK\3\4" or protocol:
        # A safetensors header of some lengths begins alike, but for the zeros that end the length.
        return bool(start[2:8].strip(b"\0"))
    return path.suffix.lower() in PICKLED and start[8:9] != b"{"


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
