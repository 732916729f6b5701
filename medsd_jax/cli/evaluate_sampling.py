"""Sampling for an evaluation: the pictures of a table of prompts, made once for OUTPUT."""

import argparse
import json
from pathlib import Path

from medsd_jax.cli import sample
from medsd_jax.errors import UserError


def sampled(args: argparse.Namespace) -> Path:
    """Samples into OUTPUT/samples, as sample.py does; keeps pictures that are there already.

    Raises:
        UserError: pictures are there that were sampled in another way.
    """
    folder, stamp = args.output / "samples", args.output / "samples_request.json"
    words = ["--model", args.model, "--prompts_csv", str(args.prompts_csv)]
    words += ["--num_images", str(args.num_images or 1), "--output", str(folder)]
    for name in ("num_steps", "guidance_scale"):
        if getattr(args, name) is not None:
            words += [f"--{name}", str(getattr(args, name))]
    if (folder / "samples.jsonl").is_file():
        request = _request(words, args)
        if not stamp.is_file() or json.loads(stamp.read_text(encoding="utf-8")) != request:
            raise UserError(
                f"{folder} holds pictures of another model, other prompts or settings: "
                "name another --output, or remove it"
            )
        return folder
    sample.run(words)
    text = json.dumps(_request(words, args), indent=2)
    stamp.write_text(text + "\n", encoding="utf-8")
    return folder


def _request(words: list[str], args: argparse.Namespace) -> dict:
    """What the pictures depend on; the model by its weights as they are now."""
    from medsd_jax import api

    return {
        "words": words[2:],
        "prompts": args.prompts_csv.read_text(encoding="utf-8-sig"),
        "model": api.load(args.model).fingerprint(),
    }
