r"""The one reader of CSV and the one of JSON lines: training data, evaluation sets, prompts.

What a spreadsheet, pandas or another trainer left behind is mended where it has one meaning, and
said; it is refused by name where it has several.

    separator           a comma; `;` or a tab where the header has no comma, or `sep=;` on line 1
    byte order mark     dropped; other encodings than UTF-8 are refused
    names of columns    without spaces around them; a name twice is refused
    nameless columns    dropped: pandas writes its index so ("" or "Unnamed: 0")
    empty lines         skipped and counted: a spreadsheet writes `,,`
    NUL, half of a      refused: no file name and no text file holds them
    surrogate pair
"""

import collections
import csv
import dataclasses
import gzip
import io
import json
import logging
import math
import re
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from medsd_jax.errors import UserError

_log = logging.getLogger(__name__)

_NO_TEXTS = ("nan", "none", "null", "n/a", "na", "<na>", "#n/a", "nat")
_NAMELESS = re.compile(r"(Unnamed: \d+(_level_\d+)?)?")
_SEPARATOR_LINE = re.compile(r'"?sep=([,;|\t]|\\t)"?[ \t]*\r?\n?')
_SEPARATORS = {";": "semicolons", "\t": "tabs"}
_KINDS = {dict: "an object", list: "a list", bool: "true or false", int: "a number"}
_KINDS |= {float: "a number", str: "a text", type(None): "null"}


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


@dataclasses.dataclass(frozen=True)
class Table:
    """A table in memory.

    Attributes:
        names: of the columns, in order.
        rows: (file and line, cells by column); the cells of a CSV are texts without spaces around
            them, those of JSON lines are what JSON has.
    """

    names: tuple[str, ...]
    rows: tuple[tuple[str, dict[str, Any]], ...]


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
    """Read a UTF-8 text file, packed by gzip or not, with or without a byte order mark.

    Raises:
        UserError: it cannot be read, or is no UTF-8 text.
    """
    raw = b""
    try:
        raw = file.read_bytes()
        raw = gzip.decompress(raw) if file.suffix == ".gz" else raw
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file} line {line} is not UTF-8 text: save the file as UTF-8") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{file} is not a whole gzip file: copy it again") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{file} line {line} holds a NUL character: save the file as UTF-8 text")
    return text


def read_csv(file: Path, *, whole_rows: bool = False) -> Table:
    """Read a CSV with a header.

    Args:
        file: ".csv" or ".csv.gz".
        whole_rows: refuse rows with fewer cells than the header; otherwise what is missing at a
            row's end is "".

    Returns:
        The table.

    Raises:
        UserError: it is no such file, or a row has more cells than the header: a text with commas
            that is not quoted would move what stands behind it into other columns.
    """
    text = read_text(file)
    separator, text, skipped = _separator(text, file)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows, empty = [], 0
    try:
        header = [name.replace("\ufeff", "").strip() for name in _first_row(reader)]
        columns = _columns(header, str(file))
        last = reader.line_num
        for cells in reader:
            line, last = last + 1 + skipped, reader.line_num
            where = f"{file} line {line}"
            if not any(cell.strip() for cell in cells):
                empty += bool(cells)
                continue
            if any(cell.strip() for cell in cells[len(header) :]):
                held = _SEPARATORS.get(separator, "commas")
                raise UserError(f"{where} has more cells than the header; quote texts with {held}")
            if whole_rows and len(cells) < len(header):
                raise UserError(f"{where} has no {header[len(cells)] or 'last cell'}")
            cells += [""] * (len(header) - len(cells))
            rows.append((where, {name: cells[i].strip() for name, i in columns.items()}))
    except csv.Error as error:
        raise UserError(
            f"{file} line {reader.line_num + skipped} is not readable CSV: {error}"
        ) from error
    if empty:
        _log.warning("%s: %d empty lines are skipped", file, empty)
    return Table(tuple(columns), tuple(rows))


def _separator(text: str, file: Path) -> tuple[str, str, int]:
    """The separator, the text from the header on, and how many lines stand before it."""
    if match := _SEPARATOR_LINE.match(text):
        return match[1].replace("\\t", "\t"), text[match.end() :], 1
    counts = {}
    for separator in (",", *_SEPARATORS):
        try:
            header = _first_row(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
        except csv.Error:
            header = []
        counts[separator] = len(header)
    others = [separator for separator in _SEPARATORS if counts[separator] > 1]
    if counts[","] > 1 or len(others) != 1:
        return ",", text, 0
    _log.info("%s: columns are separated by %s", file, _SEPARATORS[others[0]])
    return others[0], text, 0


def _first_row(rows: Iterable[list[str]]) -> list[str]:
    return next((row for row in rows if any(cell.strip() for cell in row)), [])


def _columns(header: list[str], where: str) -> dict[str, int]:
    """Name -> place, of the columns that have a name."""
    columns: dict[str, int] = {}
    for place, name in enumerate(header):
        if _NAMELESS.fullmatch(name):
            continue
        if name in columns:
            raise UserError(f"{where} has two columns {name!r}: rename or remove one of them")
        columns[name] = place
    if columns and len(columns) < len(header):
        what = "a column" if len(header) - len(columns) == 1 else "columns"
        _log.info("%s: %s without a name is not read", where, what)
    return columns


def read_json_lines(file: Path) -> Table:
    """Read a file with one JSON object a line.

    Raises:
        UserError: it is no such file, or a line is no object, is nested too deep, names a key
            twice or holds a character that no file can.
    """
    rows, names = [], {}
    # Not splitlines: a text may hold other separators of lines, such as U+2028.
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{file} line {number}"
        row = parse_object(line, where)
        names |= dict.fromkeys(row)
        rows.append((where, row))
    return Table(tuple(names), tuple(rows))


def parse_object(line: str, where: str) -> dict[str, Any]:
    """Read one JSON object.

    Args:
        line: its text.
        where: file and line, for messages.

    Raises:
        UserError: see `read_json_lines`.
    """
    twice: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, value in pairs:
            if name.strip() in values:
                twice.append(name.strip())
            values[name.strip()] = value
        return values

    try:
        row = json.loads(line, object_pairs_hook=once)
    except RecursionError as error:
        raise UserError(f"{where} is nested too deep to be read: write the file anew") from error
    except ValueError as error:
        message = getattr(error, "msg", None) or str(error)
        raise UserError(f"{where} is not JSON ({message}): write one object per line") from error
    if not isinstance(row, dict):
        raise UserError(f"{where} is not a JSON object, but {kind_of(row)}: write the file anew")
    if twice:
        raise UserError(f"{where} has two values of {twice[0]!r}: remove one of them")
    if bad := _unusable(row):
        raise UserError(f"{where} holds {bad}: write the text anew")
    return row


def _unusable(row: dict[str, Any]) -> str:
    """Which character of a row no file can hold; "" if there is none."""
    waiting: list[Any] = [row]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, str):
            if "\0" in value:
                return "a NUL character"
            if not value.isascii() and re.search("[\ud800-\udfff]", value):
                return "half of a surrogate pair"
    return ""


def kind_of(value: Any) -> str:
    """What JSON calls a value, for messages."""
    return _KINDS.get(type(value), type(value).__name__)


def text_cell(row: dict[str, Any], name: str, where: str, *, numbers: bool = False) -> str:
    """A row's text without spaces around it; "" where it has none.

    Args:
        row: of a table.
        name: of the column.
        where: file and line, for messages.
        numbers: take whole numbers, too, as ids are.

    Raises:
        UserError: it is a list, an object or a number.
    """
    value = row.get(name)
    if value is None:
        return ""
    if isinstance(value, float) and math.isnan(value):  # pandas writes NaN for an empty cell
        return "" if numbers else "nan"
    if numbers and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if numbers and isinstance(value, float) and value.is_integer():
        return str(int(value))  # pandas makes numbers of a column with gaps float
    if numbers and isinstance(value, float):
        return str(value)
    if not isinstance(value, str):
        raise UserError(f"{where}: {name} is {kind_of(value)}: write one text")
    return value.strip()


def is_no_text(text: str) -> bool:
    """Whether a cell says that there is no text: pandas and databases write "nan" or "None"."""
    return text.strip().lower() in _NO_TEXTS
