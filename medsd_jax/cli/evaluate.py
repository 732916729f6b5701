"""``medsd-jax evaluate``: two sets of images, and every number about them."""

import argparse
from pathlib import Path

from medsd_jax.cli.flags import check_seed
from medsd_jax.cli.host_flags import add_host_flags, host_flags
from medsd_jax.cli.sampling_flags import add_sampling_flags, sampling_of_flags
from medsd_jax.errors import UserError

_EXAMPLES = """examples:
  medsd-jax train-classifier --config demo_classifier --workdir runs/classifier
  medsd-jax evaluate --real runs/classifier/data:validation --synthetic runs/look \\
      --output runs/evaluation --features classifier=runs/classifier --classifier runs/classifier
  medsd-jax evaluate --real runs/classifier/data:validation --train runs/classifier/data:train \\
      --model runs/demo --prompts_csv prompts.csv --guidance_scale 4 \\
      --output runs/evaluation --features classifier=runs/classifier
  medsd-jax evaluate --real runs/classifier/data:validation --classifier runs/classifier \\
      --model CompVis/stable-diffusion-v1-4 --config out_of_the_box \\
      --output runs/out_of_the_box --features xrv=FILE

`medsd-jax reconstruct` measures a model's autoencoder alone, on real images.

a set of images (R, S, T) is
  FOLDER              its images, or those of its metadata.csv, metadata.jsonl, samples.jsonl
  TABLE.csv           with a column of paths; further columns: prompt, patient_id, labels
  FOLDER:validation   a prepared data set, as `medsd-jax data` makes it; or FOLDER:train

feature spaces, any number of them:
  classifier=FOLDER   the classifier that train-classifier wrote
  inception=FILE      InceptionV3 of the FID literature (pt_inception-2015-12-05)
  xrv=FILE            torchxrayvision's densenet121-res224, as RoentGen measures
  clip=FOLDER         CLIP's image tower, such as openai/clip-vit-base-patch32
  rad-dino=FOLDER     microsoft/rad-dino, as CheXGenBench measures
  latent=MODEL        the latents of a Stable Diffusion model's autoencoder: near copies
                      show there (--train); rough as a distance of sets
  thumbnail           8 x 8 grey cells, for a first look: rough

Without --features it is the classifier of --classifier, else the latents of --model, else
thumbnail: a default for a first look that takes no download, and no number to publish."""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``evaluate``."""
    parser = subparsers.add_parser(
        "evaluate",
        help="measure generated images against real ones",
        description="Compares two sets: FID, KID, precision, recall, density, coverage; as a\n"
        "whole and by finding, sex, age and view. With --classifier: do the images show what "
        "their\nprompts ask for. With --train: are there training images among them; --real are "
        "then\nimages of patients that the model was not trained on.",
        epilog=_EXAMPLES,
    )
    add_host_flags(parser)
    add = parser.add_argument
    add("--real", required=True, metavar="R", help="the real images")
    add("--synthetic", metavar="S", help="the generated images; or give --model")
    add("--train", metavar="T", help="what the model was trained on, for memorization")
    add(
        "--output", required=True, type=Path, metavar="DIR", help="gets report.json and report.html"
    )
    add(
        "--features", action="append", metavar="KIND=PATH",
        help="feature space; may be repeated; images are ordered for the page by the first one; "
        "a rough one by default, see below",
    )  # fmt: skip
    add("--classifier", type=Path, metavar="FOLDER", help="classifier that says what images show")
    add(
        "--seed", type=int,
        help="of subsets and resamples, and of the first image that --model draws (default 0)",
    )  # fmt: skip
    add_sampling_flags(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    check_flags(args)
    sampling = sampling_of_flags(args)
    from medsd_jax.parallel.multihost import is_main_process
    from medsd_jax.parallel.start import start_devices
    from medsd_jax.reports.evaluation_summary import in_words
    from medsd_jax.workflows.evaluate import evaluate

    start_devices(host_flags(args))
    report = evaluate(
        args.real,
        sampling or args.synthetic,
        output=args.output,
        features=args.features,
        train=args.train,
        classifier=args.classifier,
        seed=args.seed or 0,
    )
    if is_main_process():
        print(in_words(report))
        page = args.output / "report.html"
        print(f"open {page}; its numbers are in {page.with_suffix('.json')}")
    return 0


def check_flags(args: argparse.Namespace) -> None:
    """Raises UserError where the flags do not say one set of generated images."""
    if (args.synthetic is None) == (args.model is None):
        raise UserError("give --synthetic S, or --model M to sample with and say what")
    check_seed(args.seed or 0)
