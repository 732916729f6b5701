"""``medsd-jax data``: prepare a data set and show what is in it."""

import argparse
from pathlib import Path

from medsd_jax.bounds import MAX_PHANTOMS
from medsd_jax.cli.flags import at_most, check_seed, positive_int
from medsd_jax.data.dataset import SOURCES
from medsd_jax.data.transforms import RESIZE_MODES
from medsd_jax.errors import UserError

_EXAMPLES = """examples:
  medsd-jax data --source phantom --num_images 300 --output runs/phantoms
  medsd-jax data --source phantom --num_images 300 --output runs/phantoms \\
      --export_folder runs/my_images
  medsd-jax data --source folder --path runs/my_images --output runs/my_data

An image folder holds images and metadata.csv with the columns file_name,text and, if you have them,
patient_id, split (train or validation) and labels. The second line makes one to look at."""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the parser of this command."""
    parser = subparsers.add_parser(
        "data",
        help="prepare a data set and show what is in it",
        description="Prepare a data set for training, print what it holds and what was left out,\n"
        "and write contact_sheet.png: images with their captions.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("--source", required=True, choices=list(SOURCES), help="kind of data")
    parser.add_argument("--path", metavar="DIR", help="folder of the images; phantom needs none")
    parser.add_argument(
        "--output",
        required=True,
        metavar="DIR",
        help="prepared data and contact_sheet.png go here; train with --config.data.cache_dir=DIR",
    )
    parser.add_argument(
        "--num_images",
        type=at_most(MAX_PHANTOMS),
        metavar="N",
        help="phantom: how many (default 3000)",
    )
    parser.add_argument("--seed", type=int, metavar="S", help="phantom: which series (default 0)")
    parser.add_argument(
        "--image_size", type=positive_int, metavar="PIXELS", help="phantom: side (default 64)"
    )
    parser.add_argument(
        "--export_folder",
        metavar="DIR",
        help="phantom: also write the images as an image folder with metadata.csv",
    )
    parser.add_argument(
        "--validation_fraction",
        type=float,
        default=0.1,
        metavar="F",
        help="share of the patients kept for validation (default 0.1)",
    )
    parser.add_argument(
        "--resize_mode",
        choices=RESIZE_MODES,
        default="pad",
        help="how the contact sheet makes images square (default pad)",
    )
    parser.add_argument(
        "--num_shown",
        type=at_most(1000),
        default=20,
        metavar="N",
        help="images on the contact sheet (default 20)",
    )


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    from medsd_jax.workflows.prepare_data import prepare_data, write_phantom_folder

    if args.seed is not None:
        check_seed(args.seed)
    params = {
        name: getattr(args, name)
        for name in ("num_images", "seed", "image_size")
        if getattr(args, name) is not None
    }
    if args.source != "phantom":
        given = [*params, *(["export_folder"] if args.export_folder else [])]
        if given:
            raise UserError(f"--{given[0]} is for --source phantom; leave it out")
    elif args.export_folder:
        count = write_phantom_folder(Path(args.export_folder), **params)
        print(f"image folder: {args.export_folder} ({count} images, metadata.csv)")
    dataset, sheet = prepare_data(
        args.source,
        args.path,
        Path(args.output),
        params=params,
        validation_fraction=args.validation_fraction,
        resize_mode=args.resize_mode,
        num_shown=args.num_shown,
    )
    print(f"prepared data: {dataset.info.folder}")
    for line in dataset.info.lines():
        print(line)
    print(f"labels: {', '.join(dataset.info.label_names) or 'none'}")
    if sheet is not None:
        print(f"contact sheet: {sheet}")
    return 0
