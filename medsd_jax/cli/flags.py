"""Flags of the command line: every mistake is one line that names the word and the way out.

A training takes ``--config RECIPE --workdir DIR --config.section.key=value ...`` with the
syntax of ml_collections' config flags. We read them ourselves because that library answers a
missing file with an object that fails later, an unknown key or a None default with a traceback, and
an error inside ``get_config`` with a page of text.
"""

import argparse
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ml_collections import ConfigDict

from medsd_jax.bounds import MAX_IMAGES
from medsd_jax.cli.host_flags import add_host_flags, host_flags
from medsd_jax.config.overrides import missing_keys, override
from medsd_jax.config.recipes import load_config
from medsd_jax.errors import UserError, closest
from medsd_jax.parallel.launch import HostFlags


class ArgumentParser(argparse.ArgumentParser):
    """argparse with one-line errors: a mistake raises UserError, an unknown flag names its closest.

    Flags are not abbreviated: an abbreviation in a script breaks the day a flag is added.
    """

    def __init__(self, **kwargs: Any):
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**kwargs, allow_abbrev=False)

    def parse_known_args(self, args=None, namespace=None):
        """Parse like argparse, but refuse unknown words here, where the flags are known."""
        if args is not None and self._subparsers is None:
            # Before argparse complains that --model is missing, say that --modl is unknown.
            self._refuse([word for word in args if self._is_unknown_flag(word)])
        namespace, unknown = super().parse_known_args(args, namespace)
        self._refuse(unknown)
        return namespace, unknown

    def _is_unknown_flag(self, word: str) -> bool:
        name = word.partition("=")[0]
        # Like argparse, take what holds a space for a value.
        is_flag = name.startswith("--") and name != "--" and " " not in name
        return is_flag and name not in self._option_string_actions

    def _refuse(self, words: Sequence[str]) -> None:
        if words:
            word = words[0].partition("=")[0]
            self.error(f"unknown argument {word}{closest(word, self._option_string_actions)}")

    def error(self, message: str) -> NoReturn:
        """Raise UserError instead of printing the usage and leaving."""
        if len(message) > 400:  # a value of a thousand digits
            message = f"{message[:300]} ... {message[-40:]}"
        raise UserError(f"{message}; see {self.prog} --help")


def check_seed(seed: int) -> None:
    """Raises UserError where the value of --seed is none."""
    if not 0 <= seed < 2**32:
        raise UserError(f"--seed {seed} must be at least 0 and below 2**32")


def positive_int(text: str, most: int = MAX_IMAGES) -> int:
    """Read a flag's value that counts something: the ``type=`` of an argument that starts at 1.

    Args:
        text: as typed.
        most: beyond it a slip would end as a lack of memory: what is counted is listed in memory.
    """
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text[:40]}")
    if value > most:
        raise argparse.ArgumentTypeError(f"must be at most {most}, not {text[:40]}")
    return value


def at_most(most: int) -> Callable[[str], int]:
    """`positive_int` with another upper bound."""
    return functools.partial(positive_int, most=most)


@dataclass(frozen=True)
class TrainFlags:
    """What a training was asked to do.

    Attributes:
        config: the recipe with the overrides applied, locked.
        recipe: the file or name that it came from.
        workdir: where the run writes; it need not exist yet.
        overrides: dotted key -> value, as given on the command line; of two, the later one.
        hosts: what was said of the processes that make this run.
    """

    config: ConfigDict
    recipe: str
    workdir: Path
    overrides: dict[str, Any]
    hosts: HostFlags


def parse_train_flags(
    argv: Sequence[str],
    prog: str = "medsd-jax train",
    example: str = "--config base --workdir runs/first "
    "--config.model.path=runs/demo --config.optim.learning_rate=1e-5",
) -> TrainFlags:
    """Read the flags of a training run.

    Args:
        argv: the words after the program's name.
        prog: how the program was called, for its help.
        example: words that follow it, for its help.

    Returns:
        The config and the workdir.

    Raises:
        UserError: the words cannot be understood, or the config file cannot be read.
    """
    parser = ArgumentParser(
        prog=prog,
        description="Train by a recipe. Any key of the recipe can be changed on the command line;\n"
        "medsd_jax/config/ says what every key means.",
        epilog=f"example: {prog} {example}",
    )
    parser.add_argument(
        "--workdir", required=True, metavar="DIR", help="checkpoints, logs and the model go here"
    )
    add_host_flags(parser)
    args, config, overrides = parse_recipe(parser, argv)
    workdir = Path(args.workdir)
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir {workdir} is a file; name a folder")
    return TrainFlags(config, args.config, workdir, overrides, host_flags(args))


def parse_recipe(
    parser: ArgumentParser, argv: Sequence[str]
) -> tuple[argparse.Namespace, ConfigDict, dict[str, Any]]:
    """Reads --config, the changes of its keys, and the parser's own flags.

    Returns:
        The flags, the recipe with the changes applied, locked, and the changes by dotted key.

    Raises:
        UserError: the words cannot be understood, or the config file cannot be read.
    """
    plain, overrides = _split_overrides(argv)
    parser.add_argument(
        "--config",
        required=True,
        metavar="RECIPE",
        help="a Python file, or the name of one of the project's recipes",
    )
    parser.add_argument(
        "--config.SECTION.KEY", metavar="VALUE", help="change one key of the recipe"
    )
    args = parser.parse_args(plain)
    config = load_config(args.config)
    try:
        values = {key: override(config, key, text) for key, text in overrides}
    except UserError as error:
        raise UserError(f"--config.{error}") from error
    if missing := missing_keys(config):
        words = " ".join(f"--config.{key}=VALUE" for key in missing)
        raise UserError(f"this recipe needs {words}")
    return args, config.lock(), values


def _split_overrides(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str | None]]]:
    """Take ``--config.key=value``, ``--config.key value`` and ``--[no]config.key`` out of argv."""
    plain: list[str] = []
    overrides: list[tuple[str, str | None]] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        flag = name.lstrip("-")
        if not name.startswith("-") or not flag.startswith(("config.", "noconfig.")):
            plain.append(word)
            continue
        key = flag.partition(".")[2]
        if flag.startswith("noconfig."):
            overrides.append((key, "false"))
        elif equals:
            overrides.append((key, value))
        elif words and not words[0].startswith("--"):
            overrides.append((key, words.pop(0)))
        else:
            overrides.append((key, None))  # a switch: --config.training.remat
    return plain, overrides
