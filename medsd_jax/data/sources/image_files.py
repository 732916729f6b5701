"""The image files of a folder, and the one of them that a row of a table names.

Images are known by their suffix (`IMAGE_SUFFIXES`) when a folder is listed; a row of a table may
name any file. Names that Windows wrote, with backslashes, are read as paths. For other names that
lead nowhere there is a hint: the file that the row may mean.
"""

import collections
import dataclasses
import logging
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from medsd_jax.errors import UserError

_log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm",
)  # fmt: skip
_BESIDE_IMAGES = (
    ".csv", ".tsv", ".json", ".jsonl", ".txt", ".md", ".html", ".htm", ".xml", ".yaml", ".yml",
    ".log", ".xlsx", ".xls", ".ods", ".csv.gz", ".zip", ".tgz", ".tar", ".py", ".ipynb", ".sh",
    ".pdf", ".safetensors",
)  # fmt: skip
_LINKED_FOLDER = "linked folder"
_CLOSED_FOLDER = "folder that cannot be opened"
_NO_FILE = "link to nowhere or no plain file"
_MAX_HINTS = 20


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """What lies in a folder and below it; hidden files and folders are passed over.

    Attributes:
        images: path relative to the folder, with slashes -> path; in the order of the names.
        others: what is no image by its name, but may be meant as one -> its suffix.
    """

    images: Mapping[str, Path]
    others: Mapping[str, str]

    def warn_of_others(self, folder: Path) -> None:
        """Say how many files were passed over, by suffix."""
        if self.others:
            counts = collections.Counter(self.others.values())
            shown = ", ".join(f"{suffix} ({n})" for suffix, n in counts.most_common())
            _log.warning(
                "%s: %d files or folders are not read as images: %s; images end in %s",
                folder, len(self.others), shown, ", ".join(IMAGE_SUFFIXES),
            )  # fmt: skip


def list_images(folder: Path) -> ImageFiles:
    """Look through a folder and its subfolders; links to folders are not followed."""
    images, others = {}, {}

    def note_closed(error: OSError) -> None:
        others[printable(Path(error.filename).relative_to(folder))] = _CLOSED_FOLDER

    for parent, folders, files in os.walk(folder, onerror=note_closed):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if (Path(parent) / name).is_symlink():
                others[printable((Path(parent) / name).relative_to(folder))] = _LINKED_FOLDER
        for name in sorted(files):
            if name.startswith("."):
                continue
            file = Path(parent) / name
            shown = printable(file.relative_to(folder))
            if shown != file.relative_to(folder).as_posix():
                others[shown] = "name that is not UTF-8"
            elif name.lower().endswith(IMAGE_SUFFIXES):
                if is_file(file):
                    images[shown] = file
                else:
                    others[shown] = _NO_FILE
            elif not name.lower().endswith(_BESIDE_IMAGES):
                others[shown] = _suffix(name)
    return ImageFiles(images, others)


def printable(path: Path | str) -> str:
    """A path with slashes that any file and any terminal takes: odd bytes as backslash codes."""
    text = path.as_posix() if isinstance(path, Path) else path
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _suffix(name: str) -> str:
    if name.lower().endswith(".nii.gz"):
        return ".nii.gz"
    return Path(name).suffix.lower() or "no suffix"


def is_file(path: Path) -> bool:
    """Whether there is such a file; False for paths that no system can hold, too."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


class FileFinder:
    """Finds what the rows of one table name, and keeps count of what was not there."""

    def __init__(self, folder: Path, *, inside: bool):
        """Start to look.

        Args:
            folder: what relative names start at.
            inside: refuse names that lead out of the folder: the table came with the images.
        """
        self._folder, self._inside = folder, inside
        self._backslashes: list[str] = []
        self._missing: list[str] = []

    def find(self, name: str, where: str) -> tuple[str, Path | None]:
        """Return the name with slashes and its path; None where there is no such file.

        Raises:
            UserError: the name leads out of the folder, and must not.
        """
        slashed = name.replace("\\", "/")
        if self._inside:
            for path in (Path(name), Path(slashed)):
                if path.is_absolute() or ".." in path.parts:
                    raise UserError(f"{where}: {name!r} leaves the folder {str(self._folder)!r}")
        if is_file(self._folder / name):
            return Path(name).as_posix(), self._folder / name
        if slashed != name and is_file(self._folder / slashed):
            self._backslashes.append(name)
            return Path(slashed).as_posix(), self._folder / slashed
        self._missing.append(name)
        return Path(name).as_posix(), None

    def hint(self, images: Iterable[str]) -> str:
        """Of the names that were not found: `` (for X there is Y: write that)``, or nothing.

        Args:
            images: of the folder, relative to it, with slashes.
        """
        listed = [(image, _parts(image)) for image in images]
        for name in self._missing[:_MAX_HINTS]:
            result = _most_alike(_parts(name), listed)
            if result is not None:
                return f" (for {name!r} there is {result!r}: write that)"
        return ""

    def warn(self, table: Path) -> None:
        """Say which names were read as Windows paths."""
        if self._backslashes:
            _log.warning(
                "%s: %d names with backslashes are read as paths, such as %r",
                table, len(self._backslashes), self._backslashes[0],
            )  # fmt: skip

    @property
    def missing(self) -> tuple[str, ...]:
        """Names without a file, as the table has them."""
        return tuple(self._missing)


def _parts(name: str) -> list[str]:
    """From the file up: its name without the suffix, its suffix, its folders; in lower case."""
    *folders, file = [part for part in re.split(r"[\\/]+", name.lower()) if part] or [""]
    suffix = next((x for x in IMAGE_SUFFIXES if file.endswith(x)), "")
    return [file.removesuffix(suffix), suffix, *reversed(folders)]


def _most_alike(expected: list[str], listed: list[tuple[str, list[str]]]) -> str | None:
    """The one image of the same stem that shares most of suffix and folders; None where two do."""
    best, names = -1, []
    for name, parts in listed:
        if parts[0] != expected[0]:
            continue
        shared = 0
        for ours, theirs in zip(expected[2:], parts[2:], strict=False):
            if ours != theirs:
                break
            shared += 1
        score = 2 * shared + (parts[1] == expected[1])
        if score > best:
            best, names = score, []
        if score == best:
            names.append(name)
    return names[0] if len(names) == 1 else None
