"""Recipes: Python files with ``get_config()``, named by path or, those of the project, by name."""

import importlib.util
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from medsd_jax.errors import UserError, closest

_PACKAGE = Path(__file__).parents[1]


def recipes_folder() -> Path:
    """The folder of the project's recipes: configs/ of a clone, or its copy in an installed wheel.

    Raises:
        UserError: there is neither.
    """
    for folder in (_PACKAGE.parent / "configs", _PACKAGE / "recipes"):
        if (folder / "finetune.py").is_file():
            return folder
    raise UserError(f"{_PACKAGE / 'recipes'} is missing: install medsd_jax again")


def find_recipe(where: str | Path, folder: Path | None = None) -> Path:
    """The file of a recipe.

    Args:
        where: a path that ends in .py, or the name of one of the project's recipes, such as
            "few_shot".
        folder: of the recipes that go by name, instead of the project's.

    Raises:
        UserError: there is no such file.
    """
    path = Path(where)
    if path.suffix == "" and path.name == str(where):
        folder = recipes_folder() if folder is None else folder
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder of recipes")
        named = folder / f"{where}.py"
        if not named.is_file():
            known = closest(str(where), sorted(file.stem for file in folder.glob("*.py")))
            raise UserError(f"recipe {str(where)!r} is neither a file nor one of {folder}{known}")
        return named
    if path.suffix != ".py" or not path.is_file():
        known = [str(file) for file in path.parent.glob("*.py")]
        reason = "is not a Python file" if path.exists() else "does not exist"
        raise UserError(f"recipe {path} {reason}{closest(str(path), known)}")
    return path


def load_config(where: str | Path, folder: Path | None = None) -> ConfigDict:
    """Runs a recipe.

    Args:
        where: a Python file with ``get_config() -> ConfigDict``, or the name of a recipe of the
            project.
        folder: of the recipes that go by name, instead of the project's.

    Returns:
        The config, not locked yet: keys that it requires may still be unset.

    Raises:
        UserError: the file cannot be run, or what it returns is no config.
    """
    path = find_recipe(where, folder)
    module = _run_file(path)
    if not callable(getattr(module, "get_config", None)):
        raise UserError(f"recipe {path} has no function get_config()")
    config = _call(path, module.get_config)
    if not isinstance(config, ConfigDict):
        kind = type(config).__name__
        raise UserError(f"recipe {path}: get_config() returns a {kind}, not a ConfigDict")
    return config


def check_recipe(
    config: ConfigDict, where: str | Path, factory: Callable[[], ConfigDict], example: str
) -> None:
    """Raises UserError where a recipe has not the very keys that its command reads.

    Args:
        config: what the recipe gave.
        where: the recipe, for the message.
        factory: of `medsd_jax.config`, which it should have started from.
        example: a recipe that did.
    """
    expected, given = _keys(factory()), _keys(config)
    why = None
    for key in given:
        if key not in expected:
            why = f"has a key {key!r}{closest(key, expected)}, which would not be read here"
            break
    for key in expected if why is None else ():
        if key not in given:
            why = f"lacks the key {key!r}"
            break
    if why is not None:
        raise UserError(
            f"recipe {where} {why}: take one made from medsd_jax.config.{factory.__name__}, "
            f"such as {example}"
        )


def _keys(config: ConfigDict, prefix: str = "") -> list[str]:
    keys = []
    for name, value in config.items(preserve_field_references=True):
        inner = _keys(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else None
        keys += [f"{prefix}{name}"] if inner is None else inner
    return keys


def _run_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"medsd_jax_recipe_{path.stem}", path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    _call(path, lambda: spec.loader.exec_module(module))
    return module


def _call(path: Path, call: Callable[[], Any]) -> Any:
    """Calls what a recipe defines; its mistakes are the user's, with the line that made them."""
    try:
        return call()
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"recipe {path}: line {error.lineno}: {error.msg}") from error
    except ImportError as error:
        raise UserError(f"recipe {path}: {error}") from error
    except Exception as error:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if Path(frame.filename) == path
        ]
        where = f"line {lines[-1]}: " if lines else ""
        message = " ".join(str(error).split())[:300]
        raise UserError(f"recipe {path}: {where}{type(error).__name__}: {message}") from error
