"""sample.py: prompts to images in a folder. A run that was killed goes on by the same command."""

from collections.abc import Sequence
from pathlib import Path

from medsd_jax.bounds import MAX_AT_ONCE, MAX_PIXELS
from medsd_jax.cli.edit_flags import add_edit_flags, read_edit
from medsd_jax.cli.flags import ArgumentParser, at_most, positive_int
from medsd_jax.cli.host_flags import add_host_flags, host_flags
from medsd_jax.cli.model_flags import add_model_flags, load_model
from medsd_jax.diffusion.config import SAMPLER_NAMES
from medsd_jax.evaluation.images.export import LAYOUTS


def make_parser(prog: str) -> ArgumentParser:
    """The flags of sample.py."""
    parser = ArgumentParser(
        prog=prog,
        description="Sample images from a diffusers folder, a hub id, or a training workdir.",
        epilog=f"example: {prog} --model runs/demo --output runs/look "
        '--prompt "A photo of a lung xray"',
    )
    add_model_flags(parser)
    parser.add_argument("--prompt", action="append", default=[], help="may be given several times")
    parser.add_argument(
        "--prompts_csv",
        type=Path,
        help="columns: prompt[,negative_prompt][,seed]; one row per prompt; other columns, such as "
        "id and labels, go into samples.jsonl for evaluate",
    )
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        help="folder for the images, samples.jsonl, grid.png",
    )
    parser.add_argument(
        "--num_images",
        type=positive_int,
        help="of each prompt (default 4; 1 with --layout chexgenbench)",
    )
    parser.add_argument(
        "--seed", type=int, default=0,
        help="image i of all that are asked for has seed SEED + i (default 0); a prompt whose row "
        "names a seed counts from that one",
    )  # fmt: skip
    parser.add_argument(
        "--same_seeds", action="store_true",
        help="image i of each prompt has seed SEED + i: images that only their prompt tells apart",
    )  # fmt: skip
    parser.add_argument("--num_steps", type=int, default=50, help="sampling steps (default 50)")
    parser.add_argument(
        "--guidance_scale", type=float, default=7.5, help="1 is no guidance (default 7.5)"
    )
    parser.add_argument(
        "--guidance_rescale", type=float, default=0.0,
        help="against over-exposure at large guidance: 0 off ... 1 (default 0)",
    )  # fmt: skip
    parser.add_argument("--sampler", choices=SAMPLER_NAMES, default="ddim", help="(default ddim)")
    parser.add_argument(
        "--eta", type=float, default=0.0,
        help="of ddim: 0 deterministic ... 1 as DDPM (default 0)",
    )  # fmt: skip
    parser.add_argument(
        "--negative_prompt", default="", help="what to push away from (default: the empty prompt)"
    )
    parser.add_argument(
        "--height", type=at_most(MAX_PIXELS), help="pixels (default: the model's training size)"
    )
    parser.add_argument(
        "--width", type=at_most(MAX_PIXELS), help="pixels (default: the model's training size)"
    )
    parser.add_argument(
        "--latents", type=Path, help=".npy [n, h, w, 4] float32 unit noise; row i starts image i"
    )
    parser.add_argument(
        "--batch_size",
        type=at_most(MAX_AT_ONCE),
        help="images at once (default: by their size)",
    )
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="of the computation"
    )
    parser.add_argument(
        "--layout",
        choices=LAYOUTS,
        default="files",
        help="names of the files: 00000.png ..., or as RoentGen or CheXGenBench read them, by the "
        "CSV's column id (default files)",
    )
    add_edit_flags(parser)
    add_host_flags(parser)
    return parser


def run_words(argv: Sequence[str], prog: str) -> int:
    """Samples and writes."""
    args = make_parser(prog).parse_args(list(argv))
    num_images = args.num_images or (1 if args.layout == "chexgenbench" else 4)

    from medsd_jax.parallel.multihost import is_main_process
    from medsd_jax.parallel.start import start_devices
    from medsd_jax.workflows.sample_to_folder import (
        SamplingSettings,
        check_output,
        read_latents,
        read_requests,
        sample_to_folder,
    )

    requests = read_requests(
        args.prompt,
        args.prompts_csv,
        num_images=num_images,
        seed=args.seed,
        same_seeds=args.same_seeds,
        negative_prompt=args.negative_prompt,
        seeds_draw_noise=args.latents is None,
    )
    latents = None if args.latents is None else read_latents(args.latents)
    edit = read_edit(args)
    check_output(args.output)
    start_devices(host_flags(args))
    shown = sample_to_folder(
        load_model(args),
        requests,
        args.output,
        SamplingSettings(
            sampler=args.sampler,
            num_steps=args.num_steps,
            guidance_scale=args.guidance_scale,
            guidance_rescale=args.guidance_rescale,
            eta=args.eta,
            dtype=args.dtype,
        ),
        source={"model": args.model, "lora": args.lora, "embedding": args.embedding},
        layout=args.layout,
        height=args.height,
        width=args.width,
        latents=latents,
        edit=edit,
        batch_size=args.batch_size,
        columns=num_images,
    )
    if is_main_process():
        print(f"{len(requests)} images in {args.output}; grid.png shows {shown} of them")
    return 0
