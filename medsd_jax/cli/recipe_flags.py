"""Flags that change what a recipe says, of commands whose every key is a flag."""

import argparse
from collections.abc import Callable

from ml_collections import ConfigDict

from medsd_jax.config.recipes import check_recipe, load_config


def add_recipe_flag(parser: argparse.ArgumentParser, recipe: str) -> None:
    """Adds --config to a command whose every key is a flag, too."""
    parser.add_argument(
        "--config", metavar="RECIPE",
        help=f"file or name of a recipe with other defaults for the flags below, such as {recipe}",
    )  # fmt: skip


def settings_of(
    args: argparse.Namespace, factory: Callable[[], ConfigDict], recipe: str
) -> ConfigDict:
    """The settings of a command whose every key is a flag, too.

    A flag that was given wins over the recipe of --config, and that over the defaults.

    Args:
        args: the flags, None where not given, and config.
        factory: of `medsd_jax.config`, which gives the defaults.
        recipe: one that fits, for the error message.

    Returns:
        The settings, locked.

    Raises:
        UserError: the recipe cannot be read, or is one of another command.
    """
    config = factory()
    if args.config is not None:
        config = load_config(args.config)
        check_recipe(config, args.config, factory, recipe)
    for key in config:
        given = getattr(args, key)
        if given is not None:
            config[key] = tuple(given) if isinstance(given, list) else given
    return config.lock()
