"""``medsd-jax probe-text``: what do text encoders know of the findings in a text?"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from medsd_jax.cli.flags import positive_int
from medsd_jax.cli.host_flags import add_host_flags, host_flags
from medsd_jax.cli.recipe_flags import add_recipe_flag, settings_of
from medsd_jax.config import text_probe_config
from medsd_jax.errors import UserError

if TYPE_CHECKING:
    pass
from medsd_jax.workflows.probe_text import REPORT, check_config, in_words, probe_encoders

RECIPE = "text_probe"

_EPILOG = """examples:
  medsd-jax probe-text --encoder CompVis/stable-diffusion-v1-4 \\
      --encoder StanfordAIMI/RadBERT --source folder --path my_images --output runs/probe \\
      --config text_probe
  medsd-jax probe-text --encoder models/radbert --encoder runs/radbert \\
      --source folder --path my_images --output runs/probe

The second line asks what fine-tuning did to an encoder: before it, and after. Texts are the
captions of the data set, findings its labels with 1 and 0. A hyperplane is fitted on the training
patients' texts and scored on the validation patients'. Where captions are made from the labels, as
for nih14, any encoder finds them: a text must say more than its labels for this to measure much.

--pooling: how a text becomes one vector
  last    mean of the last hidden state over all positions, padding included, as the U-Net sees it
  mean    mean of the last hidden state over the text's tokens
  cls     the last hidden state at [CLS] of a BERT, at the end of the text of CLIP
  kth:N   as mean, of the N-th hidden state from the last"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``probe-text``."""
    parser = subparsers.add_parser(
        "probe-text",
        help="measure what text encoders know of the findings in a text",
        description="Linear probes of text encoders: AUROC, accuracy and F1 of each finding read\n"
        "from the text's embedding, and paired differences between encoders.",
        epilog=_EPILOG,
    )
    default = text_probe_config()
    add_host_flags(parser)
    add = parser.add_argument
    add(
        "--encoder", required=True, action="append", metavar="X",
        help="a BERT (folder or hub id), or a Stable Diffusion model (folder, workdir or hub id); "
        "may be repeated",
    )  # fmt: skip
    add("--source", required=True, metavar="KIND", help="kind of data: phantom, folder, nih14")
    add("--path", metavar="DIR", help="folder of the images; phantom needs none")
    add("--output", required=True, type=Path, metavar="DIR", help=f"gets {REPORT} and the data")
    add_recipe_flag(parser, RECIPE)
    add(
        "--label", action="append", dest="labels", metavar="L",
        help="a finding; may be repeated (default: all labels that are 1 or 0)",
    )  # fmt: skip
    add("--pooling", metavar="P", help=f"last, mean, cls or kth:N (default {default.pooling})")
    add(
        "--attention_mask", action=argparse.BooleanOptionalAction,
        help="keep a BERT's tokens from attending to padding, which the U-Net's context does not",
    )  # fmt: skip
    add(
        "--max_length", type=positive_int, metavar="S",
        help=f"tokens of a text for a BERT (default {default.max_length}); a model has its own",
    )  # fmt: skip
    add(
        "--validation_fraction", type=float, metavar="F",
        help="share of the patients that score, where the source names no split "
        f"(default {default.validation_fraction})",
    )  # fmt: skip
    add("--num_images", type=positive_int, metavar="N", help="phantom: how many (default 3000)")
    add(
        "--num_resamples", type=positive_int, metavar="R",
        help=f"of the intervals (default {default.num_resamples})",
    )  # fmt: skip
    add("--seed", type=int, help=f"of the resamples (default {default.seed})")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from medsd_jax.parallel.multihost import is_main_process
    from medsd_jax.parallel.start import start_devices
    from medsd_jax.workflows.workdir import working_in

    if len(set(args.encoder)) < len(args.encoder):
        raise UserError("an --encoder is named twice; leave one out")
    config = settings_of(args, text_probe_config, RECIPE)
    check_config(config)
    if config.num_images is not None and args.source != "phantom":
        raise UserError(f"num_images = {config.num_images} is for --source phantom: leave it out")
    start_devices(host_flags(args))
    with working_in(args.output, "an evaluation"):
        report = probe_encoders(
            config,
            {name: name for name in args.encoder},
            (args.source, args.path),
            args.output,
            cache_dir=args.output / "data",
        )
    if is_main_process():
        print(in_words(report))
        print(f"all numbers are in {args.output / REPORT}")
    return 0
