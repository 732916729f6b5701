"""Sampling for an evaluation: the pictures of a table of prompts, made once for OUTPUT."""

import argparse
import json
from pathlib import Path

from medsd_jax import api
from medsd_jax.cli import sample
from medsd_jax.errors import UserError


def sampled(args: argparse.Namespace) -> Path:
    """Samples into OUTPUT/samples, as sample.py does; keeps pictures that are there already.

    Where the stamp is missing an earlier evaluation was killed: sample.py goes on.

    Raises:
        UserError: pictures are there that were sampled in another way.
    """
    folder, stamp = args.output / "samples", args.output / "samples_request.json"
    words = ["--model", args.model, "--prompts_csv", str(args.prompts_csv)]
    words += ["--num_images", str(args.num_images or 1), "--output", str(folder)]
    for name in ("num_steps", "guidance_scale"):
        if getattr(args, name) is not None:
            words += [f"--{name}", str(getattr(args, name))]
    if stamp.is_file() and (folder / "samples.jsonl").is_file():
        request = _request(words, args, api.load(args.model).fingerprint())
        if json.loads(stamp.read_text(encoding="utf-8")) != request:
            raise UserError(
                f"{folder} holds pictures of another model, other prompts or settings: "
                "name another --output, or remove it"
            )
        return folder
    stamp.unlink(missing_ok=True)
    sample.run(words)
    # What sample.py noted of the model: loading it again would take as long as before.
    first = (folder / "samples.jsonl").read_text(encoding="utf-8").partition("\n")[0]
    text = json.dumps(_request(words, args, json.loads(first)["model_hash"]), indent=2)
    stamp.write_text(text + "\n", encoding="utf-8")
    return folder


def _request(words: list[str], args: argparse.Namespace, model_hash: str) -> dict:
    """What the pictures depend on; the model by its weights."""
    return {
        "words": words[2:],
        "prompts": args.prompts_csv.read_text(encoding="utf-8-sig"),
        "model": model_hash,
    }
