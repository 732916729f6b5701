"""Sampling for an evaluation: the pictures of some prompts, made once for OUTPUT."""

import argparse
import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from medsd_jax.cli.config_ranges import check_ranges
from medsd_jax.cli.flags import positive_int
from medsd_jax.cli.recipes import add_recipe_flag, base_config, settings_of
from medsd_jax.diffusion.config import SAMPLER_NAMES
from medsd_jax.errors import UserError
from medsd_jax.files import read_object, write_text

BASE, RECIPE = "get_sampling_config", "configs/out_of_the_box.py"
SETTINGS = ("num_images", "sampler", "num_steps", "guidance_scale")
"""Keys that are flags of the same name here, in sample.py and in `reproduce`."""


@dataclass(frozen=True)
class Sampling:
    """What to sample.

    Attributes:
        model: diffusers folder, hub id, or training workdir.
        prompts: a table as for sample.py, or the prompts themselves.
        config: by `configs.base.get_sampling_config`; its prompts are not looked at.
    """

    model: str
    prompts: Path | Sequence[str]
    config: ConfigDict


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --model, and what to sample with it."""
    default = base_config(BASE)
    group = parser.add_argument_group("instead of --synthetic: sample into OUTPUT/samples first")
    add = group.add_argument
    add("--model", metavar="M", help="diffusers folder, hub id, or training workdir")
    add_recipe_flag(group, RECIPE)
    add("--prompt", action="append", dest="prompts", metavar="TEXT", help="may be repeated")
    add("--prompts_csv", type=Path, metavar="F", help="prompts of a table, as for sample.py")
    add(
        "--num_images", type=positive_int, metavar="N",
        help=f"of each prompt (default {default.num_images})",
    )  # fmt: skip
    add("--sampler", choices=SAMPLER_NAMES, help=f"(default {default.sampler})")
    add(
        "--num_steps", type=positive_int, metavar="N",
        help=f"of the sampler (default {default.num_steps})",
    )  # fmt: skip
    add(
        "--guidance_scale", type=float, metavar="G",
        help=f"1 is no guidance (default {default.guidance_scale})",
    )  # fmt: skip
    add(
        "--same_seeds", action="store_true", default=None,
        help="image i of each prompt has seed SEED + i, not image i of all",
    )  # fmt: skip


def sampling_of_flags(args: argparse.Namespace) -> Sampling | None:
    """What the flags, or the recipe that they name, ask to sample; None where there is no --model.

    Raises:
        UserError: they do not say one thing.
    """
    names = {"config": "config", "prompt": "prompts", "prompts_csv": "prompts_csv"}
    names |= {x: x for x in (*SETTINGS, "same_seeds")}
    if args.model is None:
        for flag, name in names.items():
            if getattr(args, name) is not None:
                raise UserError(f"--{flag} is for sampling and would not be read: leave it out")
        return None
    if args.prompts is not None and args.prompts_csv is not None:
        raise UserError("give --prompt or --prompts_csv, not both")
    config = settings_of(args, BASE, RECIPE)
    check_config(config)
    prompts = args.prompts_csv or config.prompts
    if not prompts:
        raise UserError(
            "what to sample is missing: give --prompts_csv F, --prompt TEXT, or --config FILE, a "
            "recipe with prompts"
        )
    return Sampling(args.model, prompts, config)


def check_config(config: ConfigDict) -> None:
    """Raises UserError where a value makes no sense."""
    check_ranges(config)
    if config.sampler not in SAMPLER_NAMES:
        raise UserError(f"sampler = {config.sampler!r} is none of {', '.join(SAMPLER_NAMES)}")
    if any(not prompt.strip() for prompt in config.prompts):
        raise UserError("a prompt is empty; leave it out")


def sampled(wanted: Sampling, output: Path) -> Path:
    """Samples into OUTPUT/samples, as sample.py does; keeps pictures that are there already.

    Where the stamp is missing an earlier evaluation was killed: sample.py goes on.

    Raises:
        UserError: pictures are there that were sampled in another way.
    """
    from medsd_jax import api
    from medsd_jax.cli import sample

    folder, stamp = output / "samples", output / "samples_request.json"
    table = wanted.prompts
    if not isinstance(table, Path):
        table = _write_table(wanted.prompts, output / "prompts.csv")
    words = ["--prompts_csv", str(table), "--output", str(folder)]
    for name in SETTINGS:
        words += [f"--{name}", str(wanted.config[name])]
    words += ["--seed", str(wanted.config.seed)]
    words += ["--same_seeds"] if wanted.config.same_seeds else []
    if stamp.is_file() and (folder / "samples.jsonl").is_file():
        request = _request(words, table, api.load(wanted.model).fingerprint())
        if read_object(stamp, "remove it, and the images are looked at again") != request:
            raise UserError(
                f"{folder} holds pictures of another model, other prompts or settings: "
                "name another --output, or remove it"
            )
        return folder
    stamp.unlink(missing_ok=True)
    sample.run(["--model", wanted.model, *words])
    # What sample.py noted of the model: loading it again would take as long as before.
    first = (folder / "samples.jsonl").read_text(encoding="utf-8").partition("\n")[0]
    text = json.dumps(_request(words, table, json.loads(first)["model_hash"]), indent=2)
    write_text(stamp, text + "\n")
    return folder


def _write_table(prompts: Sequence[str], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["prompt"], *([prompt] for prompt in prompts)])
    return path


def _request(words: list[str], table: Path, model_hash: str) -> dict:
    """What the pictures depend on; the model by its weights."""
    return {
        "words": words,
        "prompts": table.read_text(encoding="utf-8-sig"),
        "model": model_hash,
    }
