"""The files in configs/: where they are, how they are run, and how flags change what they say."""

import argparse
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from medsd_jax.errors import UserError, closest

_PROJECT = Path(__file__).parents[2]


def find_configs(folder: Path | None = None) -> Path:
    """The folder of the recipes.

    Args:
        folder: another one than the project's.

    Raises:
        UserError: there is none; the package is installed without the project around it.
    """
    if folder is None:
        folder = _PROJECT / "configs"
        if not (folder / "base.py").is_file():
            raise UserError(
                f"{folder / 'base.py'} is missing: recipes and defaults come with the project, not "
                "with the package; install it with pip install -e from a clone"
            )
    if not folder.is_dir():
        raise UserError(f"--configs {folder} is no folder of recipes")
    return folder


def load_config(path: str | Path) -> ConfigDict:
    """Run a config file.

    Args:
        path: a Python file with ``get_config() -> ConfigDict``.

    Returns:
        The config, not locked yet: keys that it requires may still be unset.

    Raises:
        UserError: the file cannot be run, or what it returns is no config.
    """
    path = Path(path)
    module = _run_file(path)
    if not callable(getattr(module, "get_config", None)):
        raise UserError(f"--config {path} has no function get_config()")
    config = _told(path, module.get_config)
    if not isinstance(config, ConfigDict):
        kind = type(config).__name__
        raise UserError(f"--config {path}: get_config() returns a {kind}, not a ConfigDict")
    return config


def base_config(factory: str) -> ConfigDict:
    """The defaults that a function of configs/base.py gives, such as "get_vae_audit_config"."""
    return getattr(_run_file(find_configs() / "base.py"), factory)()


def check_recipe(config: ConfigDict, path: Path, factory: str, example: str) -> None:
    """Raises UserError where a recipe has not the very keys that its command reads.

    Args:
        config: what the recipe gave.
        path: where it came from.
        factory: the function of configs/base.py that it should have started from.
        example: a recipe that did.
    """
    wanted, found = _keys(base_config(factory)), _keys(config)
    why = None
    for key in found:
        if key not in wanted:
            why = f"has a key {key!r}{closest(key, wanted)}, which would not be read here"
            break
    for key in wanted if why is None else ():
        if key not in found:
            why = f"lacks the key {key!r}"
            break
    if why is not None:
        raise UserError(
            f"--config {path} {why}: take a recipe made from configs.base.{factory}, such as "
            f"{example}"
        )


def _keys(config: ConfigDict, prefix: str = "") -> list[str]:
    keys = []
    for name, value in config.items(preserve_field_references=True):
        inner = _keys(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else None
        keys += [f"{prefix}{name}"] if inner is None else inner
    return keys


def add_recipe_flag(parser: argparse.ArgumentParser, recipe: str) -> None:
    """Adds --config to a command whose every key is a flag, too."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE",
        help=f"recipe with other defaults for the flags below, such as {recipe}",
    )  # fmt: skip


def settings_of(args: argparse.Namespace, factory: str, recipe: str) -> ConfigDict:
    """The settings of a command whose every key is a flag, too.

    A flag that was given wins over the recipe of --config, and that over configs/base.py.

    Args:
        args: the flags, None where not given, and config.
        factory: the function of configs/base.py that gives the defaults.
        recipe: one that fits, for the error message.

    Returns:
        The settings, locked.

    Raises:
        UserError: the recipe cannot be read, or is one of another command.
    """
    config = base_config(factory)
    if args.config is not None:
        config = load_config(args.config)
        check_recipe(config, args.config, factory, recipe)
    for key in config:
        given = getattr(args, key)
        if given is not None:
            config[key] = tuple(given) if isinstance(given, list) else given
    return config.lock()


def _run_file(path: Path) -> ModuleType:
    if path.suffix != ".py" or not path.is_file():
        known = [str(file) for file in path.parent.glob("*.py")]
        reason = "is not a Python file" if path.exists() else "does not exist"
        raise UserError(f"--config {path} {reason}{closest(str(path), known)}")
    spec = importlib.util.spec_from_file_location(f"medsd_jax_config_{path.stem}", path)
    assert spec is not None and spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    # Recipes import configs.base, wherever the command is called from.
    if str(_PROJECT) not in sys.path:
        sys.path.append(str(_PROJECT))
    _told(path, lambda: spec.loader.exec_module(module))
    return module


def _told(path: Path, call: Callable[[], Any]) -> Any:
    """Calls what a recipe defines; its mistakes are the user's, with the line that made them."""
    try:
        return call()
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"--config {path}: line {error.lineno}: {error.msg}") from error
    except ImportError as error:
        raise UserError(f"--config {path}: {error}") from error
    except Exception as error:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if Path(frame.filename) == path
        ]
        where = f"line {lines[-1]}: " if lines else ""
        said = " ".join(str(error).split())[:300]
        raise UserError(f"--config {path}: {where}{type(error).__name__}: {said}") from error
