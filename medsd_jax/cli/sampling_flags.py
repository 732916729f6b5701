"""Sampling for an evaluation: the images of some prompts, made once for OUTPUT."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from medsd_jax.cli.flags import positive_int
from medsd_jax.cli.recipe_flags import add_recipe_flag, settings_of
from medsd_jax.config import sampling_config
from medsd_jax.diffusion.config import SAMPLER_NAMES
from medsd_jax.errors import UserError

if TYPE_CHECKING:  # importing it waits for JAX, which --help need not
    from medsd_jax.workflows.sample_for_evaluation import Sampling

RECIPE = "out_of_the_box"


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --model, and what to sample with it."""
    default = sampling_config()
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


def sampling_of_flags(args: argparse.Namespace) -> "Sampling | None":
    """What the flags, or the recipe that they name, ask to sample; None where there is no --model.

    Raises:
        UserError: they do not say one thing.
    """
    from medsd_jax.workflows.sample_for_evaluation import SETTINGS, Sampling, check_config

    names = {"config": "config", "prompt": "prompts", "prompts_csv": "prompts_csv"}
    names |= {x: x for x in (*SETTINGS, "same_seeds")}
    if args.model is None:
        for flag, name in names.items():
            if getattr(args, name) is not None:
                raise UserError(f"--{flag} is for sampling and would not be read: leave it out")
        return None
    if args.prompts is not None and args.prompts_csv is not None:
        raise UserError("give --prompt or --prompts_csv, not both")
    config = settings_of(args, sampling_config, RECIPE)
    check_config(config)
    prompts = args.prompts_csv or config.prompts
    if not prompts:
        raise UserError(
            "what to sample is missing: give --prompts_csv F, --prompt TEXT, or --config FILE, a "
            "recipe with prompts"
        )
    return Sampling(args.model, prompts, config)
