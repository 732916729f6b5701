"""What folder-based sources share: reading a table, listing a folder, problems by name."""

import collections
import csv
import gzip
import io
import os
from pathlib import Path

from medsd_jax.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


class Problems:
    """Entries that were left out, by reason."""

    def __init__(self):
        self._by_reason: dict[str, list[str]] = collections.defaultdict(list)

    def add(self, reason: str, name: str) -> None:
        """Note that `name` was left out."""
        self._by_reason[reason].append(name)

    def freeze(self) -> dict[str, tuple[str, ...]]:
        """Return reason -> names."""
        return {reason: tuple(names) for reason, names in self._by_reason.items()}


def check_folder(path: Path | str | None, source: str) -> Path:
    """Return the path as a folder that exists, or raise a UserError."""
    if path is None:
        raise UserError(f"the source {source!r} reads a folder: give its path")
    folder = Path(path).expanduser()
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise UserError(f"data path {str(folder)!r} {what}: give the folder of the images")
    return folder


def read_text(file: Path) -> str:
    """Read a UTF-8 text file, packed by gzip or not, with or without a byte order mark."""
    try:
        raw = file.read_bytes()
        return (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text: save it as UTF-8 CSV") from error
    except (gzip.BadGzipFile, EOFError) as error:
        raise UserError(f"{file} is not a whole gzip file: copy it again") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error}") from error


def read_csv(file: Path) -> tuple[tuple[str, ...], list[dict[str, str]]]:
    """Read a CSV with a header.

    Args:
        file: ".csv" or ".csv.gz".

    Returns:
        (column names, rows); cells are stripped, cells missing at a row's end are "".

    Raises:
        UserError: it is no such file, or a row has more cells than the header: a text with commas
            that is not quoted would move what stands behind it into other columns.
    """
    rows = []
    try:
        reader = csv.DictReader(io.StringIO(read_text(file), newline=""), strict=True)
        names = tuple(name.strip() for name in reader.fieldnames or ())
        reader.fieldnames = list(names)
        for row in reader:
            if any(cell.strip() for cell in row.pop(None, ())):
                raise UserError(
                    f"{file} line {reader.line_num} has more cells than the header; quote texts "
                    "with commas"
                )
            rows.append({name: (cell or "").strip() for name, cell in row.items()})
    except csv.Error as error:
        raise UserError(f"{file} is not a readable CSV file: {error}") from error
    return names, rows


def list_images(folder: Path) -> dict[str, Path]:
    """Return every image file below a folder: path relative to it, with slashes -> path."""
    found = {}
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith("."):
                file = Path(parent) / name
                found[file.relative_to(folder).as_posix()] = file
    return found
