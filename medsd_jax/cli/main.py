"""Command line of the package: finds the command, runs it, turns mistakes into exit codes.

A command is one file in this folder with two functions: ``add_parser(subparsers)`` adds its parser
under the command's name, ``run(args)`` does the work and returns the exit code (None is 0). A
command that takes a recipe has ``run_words(argv, prog)`` in their place; `prog` stands in its help.

Exit codes: 0 done; 1 done, but a check that was asked for failed, or a training diverged; 2 a
mistake in the input, a full disk, a folder in use or the like, told in one line on stderr; 130
interrupted, by Ctrl-C or SIGTERM: the same command goes on. Processes of one run end with the same
one. A traceback means a bug, and 1.
"""

import importlib
import logging
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

from medsd_jax.cli.edge import close_bars, hush_echoes, reason, warn_of_threads, without_traceback
from medsd_jax.cli.flags import ArgumentParser
from medsd_jax.errors import DivergedError, UserError, one_line
from medsd_jax.interrupts import EXIT_CODE, INTERRUPTED, AgreedStop, program, starting, working
from medsd_jax.parallel import together

COMMANDS = {
    "train": "adapt a Stable Diffusion model, or train its VAE, by a recipe",
    "sample": "sample images into a folder, or redraw a part of one",
    "demo": "train a tiny Stable Diffusion on synthetic chest X-rays and report",
    "export": "write a diffusers folder, checked against PyTorch with --verify",
    "swap-text-encoder": "put a BERT in the place of a model's text encoder",
    "train-projection": "teach a projection from a BERT into CLIP's space",
    "evaluate": "measure generated images against real ones",
    "reconstruct": "measure what a model's autoencoder keeps of images",
    "reproduce": "compare all adaptations of the papers in one table",
    "probe-text": "measure what text encoders know of the findings in a text",
    "plan": "say what a recipe needs on a TPU slice, without a TPU",
    "membership": "tell trained from held-out images by their denoising loss",
    "export-images": "lay images out for clean-fid, RoentGen's scripts and CheXGenBench",
    "train-classifier": "train the classifier that measures generated images, on real ones",
    "downstream-utility": "say what synthetic images add to a classifier's training",
    "data": "prepare a data set and show what is in it",
}
"""Command -> one line of help. The file of the same name, with _ for - and space, is imported only
when it is asked for."""

_EPILOG = "example: medsd-jax demo --output runs/demo"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after ``medsd-jax``; those of this process when None.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    return exit_code(lambda: _run_command(words))


def run_script(command: str | None = None) -> int:
    """A whole program: ``medsd-jax``, ``python -m medsd_jax``, train.py and sample.py.

    Args:
        command: the one that the script is; if None, the first words of the command line name it.

    Returns:
        The exit code.
    """
    with program():
        if command is None:
            return main()
        return exit_code(lambda: _run_words(command, sys.argv[1:], f"python {command}.py"))


def exit_code(call: Callable[[], int | None]) -> int:
    """Run a program's body with its log on stderr and its mistakes turned into exit codes.

    Args:
        call: the whole program; returns its exit code, or None for 0.

    Returns:
        The exit code, see the top of this module; where another process of the run ended early,
        its code. Exceptions that are no UserError, DivergedError or KeyboardInterrupt, nor have
        their reason outside (`edge.reason`), are bugs: they pass.
    """
    _start_log()
    try:
        with warn_of_threads(), working():
            return call() or 0
    except (Exception, KeyboardInterrupt) as error:
        if together.others_ended():
            return together.code_of_others()
        code, line = _answer(error)
        if not isinstance(error, AgreedStop):
            together.tell_others(code, line or type(error).__name__)
        if line is None:
            raise
        hush_echoes(error)
        close_bars()
        print(line, file=sys.stderr)
        return code


def _run_words(command: str, words: list[str], prog: str) -> int | None:
    return _import(_module_of(command)).run_words(words, prog)


def _module_of(command: str) -> str:
    return f"medsd_jax.cli.{command.replace('-', '_')}"


def _import(module: str) -> ModuleType:
    with starting():
        return importlib.import_module(module)


def _answer(error: BaseException) -> tuple[int, str | None]:
    """The exit code, and the last line on stderr; None of a bug."""
    if isinstance(error, KeyboardInterrupt):
        return EXIT_CODE, INTERRUPTED
    known = isinstance(error, UserError | DivergedError)
    message = str(error) if known else reason(error)
    if message is None:
        return 1, None
    if not known:
        logging.getLogger(__name__).debug("this came from", exc_info=True)
    # One line whatever the message holds: scripts read the last line of stderr.
    line = f"medsd_jax: error: {one_line(message)}"
    return (1 if isinstance(error, DivergedError) else 2), line


def _run_command(words: list[str]) -> int | None:
    chosen = next((word for word in words if not word.startswith("-")), None)
    parser = ArgumentParser(
        prog="medsd-jax",
        description="Stable Diffusion in JAX for medical images.",
        epilog=_EPILOG,
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    module = None
    for name, summary in COMMANDS.items():
        if name == chosen:
            module = _import(_module_of(name))
            if hasattr(module, "run_words"):
                return _run_words(name, words[words.index(name) + 1 :], f"medsd-jax {name}")
            module.add_parser(subparsers)
        else:
            # A stand-in for the list of commands: importing all of them would import jax.
            subparsers.add_parser(name, help=summary)
    args = parser.parse_args(words)
    assert module is not None, words  # argparse refuses what is not in COMMANDS
    return module.run(args)


def _start_log() -> None:
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.WARNING)
    logging.getLogger("medsd_jax").setLevel(logging.INFO)
    logging.getLogger("absl").addFilter(without_traceback)
