"""``medsd-jax plan``: compiles a recipe's train step for a TPU slice that is not here.

libtpu compiles for a topology that it is told; what the compiled program says of its memory and
its operations is what the slice will need. No weights are read, and nothing is run.
"""

from collections.abc import Sequence
from pathlib import Path

from medsd_jax.cli.flags import ArgumentParser, parse_recipe, positive_int
from medsd_jax.config import training_config
from medsd_jax.config.recipes import check_recipe
from medsd_jax.workflows.plan import CHIPS, in_words, plan

_EXAMPLE = "--config roentgen --topology v5e:8x8 --config.model.path=FOLDER"


def run_words(argv: Sequence[str], prog: str) -> int:
    """Plans the recipe of the command line; returns the exit code: 1 where it does not fit."""
    parser = ArgumentParser(
        prog=prog,
        description="Compiles a recipe's train step for a TPU slice and says what it needs.\n"
        "model.path may be a folder with config.json files and no weights.",
        epilog=f"example: {prog} {_EXAMPLE}",
    )
    parser.add_argument(
        "--topology", required=True, metavar="T",
        help=f"generation and shape of the slice, such as v5e:8x8 (of {', '.join(CHIPS)})",
    )  # fmt: skip
    parser.add_argument(
        "--slices", type=positive_int, default=1, metavar="N",
        help="so many of these slices, joined by the data center's network (default 1)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the plan as JSON")
    from medsd_jax.reports.writing import write_report

    args, config, _ = parse_recipe(parser, argv)
    check_recipe(config, args.config, training_config, "roentgen")
    result = plan(config, args.topology, args.slices)
    print(in_words(result))
    if args.output is not None:
        write_report(args.output, result)
    return 0 if result.fits else 1
