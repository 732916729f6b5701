"""``medsd-jax swap-text-encoder``: a BERT in the place of a model's text encoder."""

import argparse
from pathlib import Path

from medsd_jax.bounds import MAX_FEATURES
from medsd_jax.cli.flags import at_most, check_seed, positive_int

_EPILOG = """examples:
  medsd-jax swap-text-encoder --model CompVis/stable-diffusion-v1-4 \\
      --encoder StanfordAIMI/RadBERT --output models/radbert
  medsd-jax train --config finetune --workdir runs/radbert \\
      --config.model.path=models/radbert --config.data.path=my_images

The encoder is a folder or hub id of a BERT with model.safetensors and vocab.txt. RadBERT, SapBERT,
PubMedBERT and ClinicalBERT are 768 wide, as Stable Diffusion 1's CLIP: they fit its U-Net without a
projection. A projection has random weights: train it (--config.adaptation.train) with the U-Net, or
by train-projection."""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``swap-text-encoder``."""
    parser = subparsers.add_parser(
        "swap-text-encoder",
        help="put a BERT in the place of a model's text encoder",
        description="Writes a diffusers folder whose text encoder is a BERT. Nothing is trained.",
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add("--model", required=True, metavar="M", help="diffusers folder, hub id, or training workdir")
    add("--variant", help="weight files of the model to read, such as fp16")
    add("--encoder", required=True, metavar="BERT", help="folder or hub id of a BERT")
    add("--output", required=True, type=Path, metavar="DIR", help="the folder to write")
    add(
        "--projection", choices=("none", "linear", "mlp"), default="none",
        help="random layer(s) from the encoder's width to the U-Net's (default none)",
    )  # fmt: skip
    add(
        "--hidden_features", type=at_most(MAX_FEATURES), metavar="H",
        help="of --projection mlp (default: the encoder's width)",
    )  # fmt: skip
    add(
        "--fresh_unet", action="store_true",
        help="a U-Net of random weights that attends to the encoder's width",
    )  # fmt: skip
    add(
        "--max_length", type=positive_int, default=77, metavar="S",
        help="tokens of a prompt, special ones included (default 77)",
    )  # fmt: skip
    add("--seed", type=int, default=0, help="of random weights (default 0)")


def run(args: argparse.Namespace) -> int:
    """Runs the command; returns the exit code."""
    check_seed(args.seed)
    from medsd_jax.workflows.swap_text_encoder import write_swapped

    output = args.output.expanduser()
    write_swapped(
        args.model,
        args.encoder,
        output,
        variant=args.variant,
        projection=args.projection,
        hidden_features=args.hidden_features,
        fresh_unet=args.fresh_unet,
        max_length=args.max_length,
        seed=args.seed,
    )
    new = ["a fresh U-Net"] if args.fresh_unet else []
    new += [f"a projection ({args.projection})"] if args.projection != "none" else []
    random = f"; of random weights: {' and '.join(new)}" if new else ""
    print(f"the model is in {output}, prompts of {args.max_length} tokens{random}")
    return 0
