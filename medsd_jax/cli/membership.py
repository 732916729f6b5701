"""``medsd-jax membership``: does a run's model give away what it was trained on?"""

import argparse
from pathlib import Path

from medsd_jax.bounds import MAX_AT_ONCE
from medsd_jax.cli.flags import at_most, check_seed, positive_int
from medsd_jax.cli.host_flags import add_host_flags, host_flags

REPORT = "membership.json"

_EPILOG = """examples:
  medsd-jax membership --workdir runs/mine
  medsd-jax membership --workdir runs/mine --model runs/base --output runs/mine/before

The second line asks the model that the run started from, which saw neither group: what it can tell
apart is no memorisation. The run's own config.json tells which patients were trained on and which
validate. The report:
  auroc                    0.5: losses do not tell trained images from others; with its interval
  tpr_at_one_percent_fpr   share of the trained images found with one false alarm in a hundred
  tpr_by_chance            the same where nothing tells them apart; larger of few held-out patients
  timesteps                losses of both groups and the AUROC by them, from little noise to much"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``membership``."""
    parser = subparsers.add_parser(
        "membership",
        help="tell trained from held-out images by their denoising loss",
        description="Membership inference: compares the denoising loss of images that a run\n"
        "trained on with that of its validation patients' images.",
        epilog=_EPILOG,
    )
    add_host_flags(parser)
    add = parser.add_argument
    add("--workdir", required=True, type=Path, metavar="DIR", help="of the training run")
    add("--model", metavar="M", help="default: the run's own; DIR/best, or what it started from")
    add("--output", type=Path, metavar="DIR", help=f"gets {REPORT} (default: the workdir)")
    add(
        "--num_images", type=positive_int, default=500, metavar="N",
        help="of each group, evenly over the split, or all where there are fewer (default 500)",
    )  # fmt: skip
    add("--num_timesteps", type=positive_int, default=10, metavar="K", help="default 10")
    add("--num_draws", type=positive_int, default=4, metavar="D", help="at each time (default 4)")
    add("--batch_size", type=at_most(MAX_AT_ONCE), default=8, help="on each device (default 8)")
    add("--seed", type=int, default=0, help="of noise and resamples (default 0)")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    check_seed(args.seed)
    from medsd_jax.parallel.multihost import is_main_process
    from medsd_jax.parallel.start import start_devices
    from medsd_jax.workflows.membership import config_of_run, in_words, measure_membership

    config_of_run(args.workdir)  # a wrong folder is told at once
    start_devices(host_flags(args))
    output = args.output or args.workdir
    report = measure_membership(
        args.workdir,
        output,
        model=args.model,
        num_images=args.num_images,
        num_timesteps=args.num_timesteps,
        num_draws=args.num_draws,
        batch_size=args.batch_size,
        seed=args.seed,
    )
    if is_main_process():
        print(in_words(report))
        print(f"losses by timestep are in {output / REPORT}")
    return 0
