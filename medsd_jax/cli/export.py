"""``medsd-jax export``: a diffusers folder, checked against PyTorch on request."""

import argparse
from pathlib import Path

from medsd_jax.cli.flags import at_most
from medsd_jax.cli.model_flags import add_model_flags, load_model

_EXAMPLES = """examples:
  medsd-jax export --model runs/demo --output runs/demo/export
  medsd-jax export --model runs/demo --output runs/demo/export --dtype float16 --verify

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
    """Runs the command; returns the exit code."""
    from medsd_jax.interop.diffusers_folder import check_writable
    from medsd_jax.interop.torch_verify import require_torch
    from medsd_jax.parallel.start import start_devices
    from medsd_jax.workflows.verify_export import export, summary

    output = args.output.expanduser()
    check_writable(output)
    if args.verify:
        require_torch()
    start_devices(alone="export")
    certificate = export(
        load_model(args),
        output,
        dtype=args.dtype,
        verify_steps=args.num_steps if args.verify else None,
        source=args.model,
    )
    print(f"the model is in {output} ({args.dtype} weights)")
    if certificate is None:
        return 0
    print(summary(certificate))
    return 0 if certificate.passed else 1
