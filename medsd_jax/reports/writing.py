"""Every report as a file: checked by its type, written whole, and read back."""

import dataclasses
import functools
import importlib.metadata
import json
import platform
from pathlib import Path
from typing import Any, TypeVar

import pydantic

from medsd_jax.errors import UserError
from medsd_jax.evaluation.reports.base import Report
from medsd_jax.files import read_object, write_text

_PACKAGES = (
    "medsd_jax", "jax", "flax", "optax", "numpy", "scipy", "grain", "transformers"
)  # fmt: skip

R = TypeVar("R", bound=Report)


def package_versions() -> dict[str, str]:
    """Python and the packages whose version may move a number."""
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in _PACKAGES
    }


def to_json(report: Report) -> dict[str, Any]:
    """The report as JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(report), allow_nan=False))


def write_report(path: Path, report: Report) -> None:
    """Writes a report; its folder is made where it is missing.

    Args:
        path: the .json file.
        report: of any kind; a value that its type forbids is an error of ours.
    """
    text = json.dumps(dataclasses.asdict(report), indent=2, allow_nan=False, ensure_ascii=False)
    adapter(type(report)).validate_json(text)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text + "\n")


def read_report(path: Path, kind: type[R], advice: str) -> R:
    """Reads what `write_report` wrote.

    Args:
        path: the .json file.
        kind: type of the report.
        advice: what to do where it is none, for the message.

    Raises:
        UserError: it cannot be read, is of another kind, or of another version of the schema.
    """
    result = read_object(path, advice)
    for field in dataclasses.fields(kind):
        if field.name in ("kind", "schema_version") and result.get(field.name) != field.default:
            raise UserError(
                f"{path} has {field.name} = {result.get(field.name)!r}, not {field.default!r}; "
                f"{advice}"
            )
    try:
        return adapter(kind).validate_json(json.dumps(result))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path} is no such report ({where}: {first['msg']}); {advice}") from error


@functools.cache
def adapter(kind: type[R]) -> pydantic.TypeAdapter[R]:
    """What checks reports of a type and knows its schema."""
    return pydantic.TypeAdapter(kind)
