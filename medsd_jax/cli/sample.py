"""sample.py: prompts to pictures in a folder. A run that was killed goes on by the same command."""

import functools
import logging
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medsd_jax.bounds import MOST_AT_ONCE, MOST_IMAGES, MOST_PIXELS
from medsd_jax.cli import sample_edit
from medsd_jax.cli.flags import ArgumentParser, at_most, positive_int
from medsd_jax.cli.hosts import add_host_flags, host_flags
from medsd_jax.cli.model_flags import add_model_flags, load_model
from medsd_jax.data.sources.tables import is_no_text, read_csv
from medsd_jax.diffusion.config import SAMPLER_NAMES
from medsd_jax.errors import UserError
from medsd_jax.files import content_hash, read_array

log = logging.getLogger(__name__)

_READ_COLUMNS = ("prompt", "negative_prompt", "seed")
LAYOUTS = ("files", "roentgen", "chexgenbench")
"""What sample_folder.py can lay out."""
GRID_LIMIT = 64
"""Pictures in grid.png at most; more are too small to see."""


@dataclass(frozen=True)
class Request:
    """One picture to make.

    Attributes:
        prompt: what it shall show.
        negative_prompt: what guidance pushes away from.
        seed: of its noise.
        row: the other columns of its line in the CSV, such as an id and labels.
    """

    prompt: str
    negative_prompt: str
    seed: int
    row: dict[str, str]


def make_parser() -> ArgumentParser:
    """The flags of sample.py."""
    parser = ArgumentParser(
        prog="python sample.py",
        description="Sample pictures from a diffusers folder, a hub id, or a training workdir.",
        epilog="example: python sample.py --model runs/demo --output runs/look "
        '--prompt "A photo of a lung xray"',
    )
    add_model_flags(parser)
    parser.add_argument("--prompt", action="append", default=[], help="may be given several times")
    parser.add_argument(
        "--prompts_csv",
        type=Path,
        help="columns: prompt[,negative_prompt][,seed]; a row a prompt; other columns, such as id "
        "and labels, go into samples.jsonl for evaluate",
    )
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        help="folder for the pictures, samples.jsonl, grid.png",
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
        "--height", type=at_most(MOST_PIXELS), help="pixels (default: the model's training size)"
    )
    parser.add_argument(
        "--width", type=at_most(MOST_PIXELS), help="pixels (default: the model's training size)"
    )
    parser.add_argument(
        "--latents", type=Path, help=".npy [n, h, w, 4] float32 unit noise; row i starts picture i"
    )
    parser.add_argument(
        "--batch_size",
        type=at_most(MOST_AT_ONCE),
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
    sample_edit.add_flags(parser)
    add_host_flags(parser)
    return parser


def run(argv: Sequence[str]) -> int:
    """Samples and writes."""
    args = make_parser().parse_args(list(argv))
    num_images = args.num_images or (1 if args.layout == "chexgenbench" else 4)
    requests = read_requests(args, num_images)
    latents = None if args.latents is None else read_latents(args.latents)
    edit = sample_edit.read_edit(args)
    check_output(args.output)

    from medsd_jax import api  # after the flags, so that --help and mistakes answer at once
    from medsd_jax.cli.device_setup import start_devices
    from medsd_jax.cli.sample_folder import SampleFolder
    from medsd_jax.parallel.multihost import is_main_process
    from medsd_jax.sampling.images import make_grid, save_png

    start_devices(host_flags(args))
    model = load_model(args)
    side = api.trained_side(model)
    if edit is not None:
        side = args.height or args.width or side
        edit = edit.fitted(side)
    height, width = args.height or side, args.width or side
    settings = {
        "sampler": args.sampler,
        "num_steps": args.num_steps,
        "guidance_scale": args.guidance_scale,
        "guidance_rescale": args.guidance_rescale,
        "eta": args.eta,
        "height": height,
        "width": width,
        "dtype": args.dtype,
        "model": args.model,
        "lora": args.lora,
        "embedding": args.embedding,
        "model_hash": model.fingerprint(),
        "start_latents": args.latents and str(args.latents),
        "start_latents_hash": None if latents is None else content_hash(latents),
        **({} if edit is None else edit.about),
    }
    entries = [
        {
            "prompt": request.prompt,
            "negative_prompt": request.negative_prompt,
            "seed": request.seed,
            **({"row": request.row} if request.row else {}),
            **settings,
        }
        for request in requests
    ]
    with SampleFolder(args.output, args.layout, entries) as folder:
        if folder.done:
            log.info("%d of %d pictures are there already", folder.done, len(requests))
        if folder.done < len(requests):
            api.sample(
                model,
                [r.prompt for r in requests],
                seeds=[r.seed for r in requests],
                negative_prompts=[r.negative_prompt for r in requests],
                sampler=args.sampler,
                num_steps=args.num_steps,
                guidance_scale=args.guidance_scale,
                guidance_rescale=args.guidance_rescale,
                eta=args.eta,
                height=height,
                width=width,
                latents=latents,
                batch_size=args.batch_size,
                dtype=args.dtype,
                skip=folder.done,
                on_images=functools.partial(folder.add, edit=edit),
                **({} if edit is None else edit.arguments()),
            )
        folder.finish()
        if is_main_process():
            shown = folder.first(GRID_LIMIT)
            captions = [f"{r.prompt} ({r.seed})" for r in requests[: len(shown)]]
            grid = make_grid(
                shown, columns=min(num_images, 8), captions=captions if width >= 128 else None
            )
            save_png(grid, args.output / "grid.png", settings)
            shows = f"grid.png shows {len(shown)} of them"
            print(f"{len(requests)} pictures in {args.output}; {shows}")
    return 0


def read_requests(args: Namespace, num_images: int) -> list[Request]:
    """The pictures asked for by --prompt and --prompts_csv, prompt by prompt.

    Raises:
        UserError: there is no prompt, or the CSV cannot be used.
    """
    rows = [{"prompt": prompt} for prompt in args.prompt]
    if args.prompts_csv is not None:
        rows += _read_csv(args.prompts_csv)
    if not rows:
        raise UserError('no prompt: give --prompt "..." or --prompts_csv FILE')
    if len(rows) * num_images > MOST_IMAGES:
        raise UserError(
            f"{len(rows)} prompts with {num_images} images each are {len(rows) * num_images} "
            f"images, more than the {MOST_IMAGES} of one call: ask for fewer, and go on with "
            "another --seed and --output"
        )
    requests: list[Request] = []
    for row in rows:
        first = args.seed if args.same_seeds else args.seed + len(requests)
        if named := row.get("seed"):
            try:
                # pandas writes a column of whole numbers as 12.0 where one of them is missing.
                first = int(named.removesuffix(".0"))
            except ValueError:
                raise UserError(
                    f"{args.prompts_csv}: seed {named!r} is not a whole number"
                ) from None
        negative = row.get("negative_prompt") or args.negative_prompt
        others = {k: v for k, v in row.items() if k not in _READ_COLUMNS}
        requests += [Request(row["prompt"], negative, first + i, others) for i in range(num_images)]
    _check_seeds(requests, args.latents is None)
    return requests


def _check_seeds(requests: Sequence[Request], noise_of_seeds: bool) -> None:
    """Refuses seeds that no noise has, and tells of images that will be copies of each other."""
    for number, request in enumerate(requests):
        if not 0 <= request.seed < 2**32:
            raise UserError(
                f"seed {request.seed} of image {number} must be a whole number between 0 and "
                f"{2**32 - 1}: images count on from --seed, or from the seed of their row"
            )
    distinct = {(r.prompt, r.negative_prompt, r.seed) for r in requests}
    if noise_of_seeds and len(distinct) < len(requests):
        log.warning(
            "%d of %d images are exact copies of others: their prompt and their seed are the same",
            len(requests) - len(distinct), len(requests),
        )  # fmt: skip


def _read_csv(path: Path) -> list[dict[str, str]]:
    table = read_csv(path, whole_rows=True)
    if "prompt" not in table.names:
        raise UserError(
            f"--prompts_csv {path} has no column 'prompt' (columns: "
            f"{', '.join(table.names) or 'none'})"
        )
    rows = [row for _, row in table.rows if not is_no_text(row["prompt"])]
    if len(rows) < len(table.rows):
        log.warning(
            "--prompts_csv %s: %d rows whose prompt is nan, None or the like are left out",
            path, len(table.rows) - len(rows),
        )  # fmt: skip
    if empty := sum(not row["prompt"] for row in rows):
        log.warning("--prompts_csv %s: %d prompts are empty", path, empty)
    return rows


def read_latents(path: Path) -> np.ndarray:
    """Start noise from a .npy file; pickled arrays are refused because unpickling runs code."""
    latents = read_array(path, "give --latents one array [n, h, w, 4] of floats")
    if latents.ndim != 4 or latents.dtype.kind != "f":
        raise UserError(f"--latents {path} must be one float array [n, h, w, 4]")
    if not np.isfinite(latents).all():
        raise UserError(f"--latents {path} contains values that are not finite")
    return latents.astype(np.float32)


def check_output(folder: Path) -> None:
    """Refuses a path that is no folder, before anything is loaded."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {folder} is a file; name a folder")
