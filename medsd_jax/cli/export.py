"""``python -m medsd_jax export``: a diffusers folder, checked against PyTorch on request."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from medsd_jax.cli.flags import at_most
from medsd_jax.cli.model_flags import add_model_flags, load_model
from medsd_jax.files import write_text

if TYPE_CHECKING:  # importing the API waits for JAX, which --help need not
    pass
from medsd_jax.workflows.verify_export import CERTIFICATE, PICTURES, summary, verify

_EXAMPLES = """examples:
  python -m medsd_jax export --model runs/demo --output runs/demo/export
  python -m medsd_jax export --model runs/demo --output runs/demo/export --dtype float16 --verify

The folder opens with diffusers.StableDiffusionPipeline.from_pretrained(DIR), which needs no JAX.
--verify needs torch and diffusers. It writes certificate.json, jax.png, torch.png and
difference.png beside the weights and exits with 1 when the two frameworks disagree."""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Add the parser of this command."""
    parser = subparsers.add_parser(
        "export",
        help="write a diffusers folder, checked against PyTorch with --verify",
        description="Write a model as a diffusers folder for PyTorch tools.",
        epilog=_EXAMPLES,
    )
    add_model_flags(parser)
    parser.add_argument(
        "--output", required=True, type=Path, metavar="DIR", help="the folder to write"
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "float16", "bfloat16"],
        default="float32",
        help="of the stored weights (default float32)",
    )
    parser.add_argument(
        "--verify", action="store_true", help="run both frameworks on the same inputs and compare"
    )
    parser.add_argument(
        "--num_steps",
        type=at_most(1000),
        default=10,
        metavar="N",
        help="sampling steps of --verify (default 10)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from medsd_jax.interop.pipeline_dir import check_writable
    from medsd_jax.interop.torch_verify import require_torch
    from medsd_jax.parallel.start import start_devices
    from medsd_jax.workflows.models import save

    output = args.output.expanduser()
    check_writable(output)
    if args.verify:
        require_torch()
    start_devices(alone="export")
    model = load_model(args)
    for name in (CERTIFICATE, *PICTURES):  # they would vouch for weights that they never saw
        (output / name).unlink(missing_ok=True)
    save(model, output, dtype=args.dtype)
    print(f"the model is in {output} ({args.dtype} weights)")
    if not args.verify:
        return 0
    certificate = verify(model, output, dtype=args.dtype, num_steps=args.num_steps)
    certificate["settings"]["model"] = args.model
    text = json.dumps(certificate, indent=2, allow_nan=False) + "\n"
    write_text(output / CERTIFICATE, text)
    print(summary(certificate))
    return 0 if certificate["passed"] else 1
