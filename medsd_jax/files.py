"""Files that are whole or not there, and a hash of what was in them.

What the system refuses while a file is written is a UserError that names the file and the reason.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from medsd_jax.errors import UserError

_PART = re.compile(r"\..*\.[0-9a-f]{8}(\.\w+)?")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the system refuses while `path` is written into a UserError.

    Args:
        path: the file or folder that is written, for the message.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise UserError(f"cannot write {path}: {error.strerror}{_advice(error)}") from error


def _advice(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "; free some space and run the same command again"
    return ""


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Gives a path beside `path` to write to, and renames that file to `path` at the end.

    A killed run leaves what was at `path` before, and perhaps a hidden part of its own name; after
    an exception the part is removed. Several processes may write the same file: the last one's
    stays.

    Args:
        path: the file to make or to replace; its folder exists.

    Raises:
        UserError: the disk is full, or the folder cannot be written.
    """
    part = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    with writing(path):
        try:
            yield part
            os.replace(part, path)
        finally:
            with contextlib.suppress(OSError):  # what stopped the writing is what to tell
                part.unlink(missing_ok=True)


def check_permission(path: Path) -> None:
    """Raises UserError where a file or folder of this name cannot be written, before the work."""
    there = next(at for at in (path.absolute(), *path.absolute().parents) if at.exists())
    if not os.access(there, os.W_OK | (os.X_OK if there.is_dir() else 0)):
        raise UserError(f"cannot write {path}: Permission denied ({there})")


def remove_parts(folder: Path) -> None:
    """Removes the hidden parts that killed runs left; only for who holds the folder's lock."""
    for path in folder.glob(".*"):
        if _PART.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def save_tensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes safetensors by `atomic_write`, as readable as the umask says.

    Args:
        path: the file.
        tensors: name -> array; contiguous, because the raw buffer is stored.
        metadata: for the header.
    """
    with atomic_write(path) as part:
        try:
            save_file(dict(tensors), part, metadata=dict(metadata) if metadata else None)
        except SafetensorError as error:
            # "Error while serializing: I/O error: No space left on device (os error 28)"
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        make_readable(part)  # the library makes them private


def make_readable(path: Path) -> None:
    """Gives a file or folder the mode that the umask asks for: some libraries make them private."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def content_hash(*arrays: np.ndarray | None) -> str:
    """16 hex digits that tell whether arrays, which may be missing, are the same as before."""
    digest = hashlib.blake2b(digest_size=8)
    for x in arrays:
        described = None if x is None else (x.shape, x.dtype.str)
        digest.update(repr(described).encode() + (b"" if x is None else x.tobytes()))
    return digest.hexdigest()


def read_object(path: Path, advice: str) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Args:
        path: the file.
        advice: what to do where it is none, for the message.

    Raises:
        UserError: it is missing, cannot be read, is no UTF-8 text, no JSON or no object.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{path} is missing; {advice}") from error
    except OSError as error:  # a folder of that name, a loop of links, a closed file
        raise UserError(f"{path} cannot be read ({error.strerror}); {advice}") from error
    except ValueError as error:  # no UTF-8
        raise UserError(f"{path} is not valid JSON ({error}); {advice}") from error
    return parse_object(text, str(path), advice)


def parse_object(text: str | bytes, where: str, advice: str) -> dict[str, Any]:
    """Reads a text that holds one JSON object.

    Args:
        text: the text.
        where: it was found, for the message.
        advice: what to do where it is none, for the message.

    Raises:
        UserError: it is no JSON or no object.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise UserError(f"{where} is nested too deep to be read; {advice}") from error
    except ValueError as error:
        raise UserError(f"{where} is not valid JSON ({error}); {advice}") from error
    if not isinstance(value, dict):
        raise UserError(f"{where} must hold a JSON object, not {type(value).__name__}; {advice}")
    return value


@contextlib.contextmanager
def json_object(path: Path, advice: str) -> Iterator[dict[str, Any]]:
    """Gives what `read_object` reads; what the block misses in it is a UserError, too.

    For files of ours, which others may have changed: the block only takes values out.
    """
    value = read_object(path, advice)
    try:
        yield value
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        message = f"{type(error).__name__}: {error}"[:200]
        raise UserError(f"{path} does not hold what it should ({message}); {advice}") from error


def read_array(path: Path, advice: str, *, mapped: bool = False) -> np.ndarray:
    """Reads a .npy file; pickled arrays are refused because unpickling runs code.

    Args:
        path: the file.
        advice: what to do where it is none, for the message.
        mapped: leave the numbers on the disk until they are asked for.

    Raises:
        UserError: it is missing, damaged, or holds something else.
    """
    try:
        if mapped:
            return np.lib.format.open_memmap(path, mode="r")
        with path.open("rb") as file:
            result = np.load(file, allow_pickle=False)
    except Exception as error:  # numpy reads the header with Python's own parser
        message = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise UserError(f"{path} cannot be read as a .npy array ({message}); {advice}") from error
    if not isinstance(result, np.ndarray):
        raise UserError(f"{path} holds several arrays, not one; {advice}")
    return result


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 by `atomic_write`."""
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(
    path: Path, value: Any, *, sort_keys: bool = True, allow_nan: bool = True, escape: bool = True
) -> None:
    """Writes indented JSON by `atomic_write`.

    Args:
        path: the file.
        value: what JSON can hold.
        sort_keys: else they keep their order.
        allow_nan: write NaN and infinities, which are no JSON; else they are a bug.
        escape: what is not ASCII.
    """
    text = json.dumps(
        value, indent=2, sort_keys=sort_keys, allow_nan=allow_nan, ensure_ascii=escape
    )
    write_text(path, text + "\n")
