"""Changing one key of a config by a text, as it is typed."""

import ast
from collections.abc import Iterator
from typing import Any

from absl import flags
from ml_collections import ConfigDict, FieldReference
from ml_collections.config_dict import RequiredValueError
from ml_collections.config_flags import tuple_parser

from medsd_jax.errors import UserError, closest


def override(config: ConfigDict, key: str, text: str | None) -> Any:
    """Sets one key of a config, in place, to what a text means for the key's type.

    Args:
        config: changed in place.
        key: dotted, such as "optim.learning_rate".
        text: as typed; None switches a key of type bool on.

    Returns:
        The value.

    Raises:
        UserError: there is no such key, or the text is no value of its type.
    """
    section, name, stored = _look_up(config, key)
    kind = stored.get_type() if isinstance(stored, FieldReference) else type(stored)
    if text is None and kind is not bool:
        raise UserError(f"{key} needs a value: {key}=VALUE")
    try:
        value = _read_value(kind, stored, "true" if text is None else text)
        section[name] = value
    except (ValueError, TypeError, SyntaxError, flags.Error) as error:
        raise UserError(f"{key}={text}: expected a value of type {kind.__name__}") from error
    return value


def _look_up(config: ConfigDict, key: str) -> tuple[ConfigDict, str, Any]:
    """Find a dotted key: the section that holds it, its name there, and what is stored."""
    section: Any = None
    stored: Any = config
    names = key.split(".")
    for depth, name in enumerate(names):
        section = stored
        if not isinstance(section, ConfigDict) or name not in section:
            where = ".".join(names[:depth]) or "the config"
            known = [path for path, _ in _flatten(config)]
            raise UserError(f"{key}: {where} has no key {name!r}{closest(key, known)}")
        stored = _stored(section)[name]
    if isinstance(stored, ConfigDict):
        raise UserError(f"{key} is a section; set one of its keys: {', '.join(stored)}")
    return section, names[-1], stored


_PARSERS = {
    bool: flags.BooleanParser(),
    int: flags.IntegerParser(),
    float: flags.FloatParser(),
    str: flags.ArgumentParser(),
    tuple: tuple_parser.TupleParser(),
}


def _read_value(kind: type, stored: Any, text: str) -> Any:
    """Read a value by the type of its key, with the rules of absl and ml_collections."""
    # A key that the config declares as a placeholder, or leaves at None, may be switched off.
    if text in ("none", "None") and (stored is None or isinstance(stored, FieldReference)):
        return None
    if stored is None:
        # None tells no type: read what looks like Python, and take the rest as a string.
        try:
            return ast.literal_eval(text)
        except (SyntaxError, ValueError):
            return text
    return _PARSERS[kind].parse(text) if kind in _PARSERS else ast.literal_eval(text)


def missing_keys(config: ConfigDict) -> list[str]:
    """The dotted keys that a recipe leaves to its user and that have no value yet."""
    missing = []
    for path, stored in _flatten(config):
        try:
            if isinstance(stored, FieldReference):
                stored.get()
        except RequiredValueError:
            missing.append(path)
    return missing


def _flatten(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, stored in _stored(config).items():
        if isinstance(stored, ConfigDict):
            yield from _flatten(stored, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", stored


def _stored(section: ConfigDict) -> dict[str, Any]:
    """Keys and values with placeholders as they are: reading a required one raises."""
    return dict(section.items(preserve_field_references=True))
