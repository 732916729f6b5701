"""Sampling for an evaluation: the pictures of a table of prompts, made once for OUTPUT."""

import json
from dataclasses import dataclass
from pathlib import Path

from medsd_jax import api
from medsd_jax.cli import sample
from medsd_jax.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """What to sample; None is sample.py's default.

    Attributes:
        model: diffusers folder, hub id, or training workdir.
        prompts_csv: as for sample.py.
        num_images: of each prompt.
        sampler: one of `diffusion.config.SAMPLER_NAMES`.
        num_steps: of the sampler.
        guidance_scale: 1 is no guidance.
    """

    model: str
    prompts_csv: Path
    num_images: int = 1
    sampler: str | None = None
    num_steps: int | None = None
    guidance_scale: float | None = None


def sampled(wanted: Sampling, output: Path) -> Path:
    """Samples into OUTPUT/samples, as sample.py does; keeps pictures that are there already.

    Where the stamp is missing an earlier evaluation was killed: sample.py goes on.

    Raises:
        UserError: pictures are there that were sampled in another way.
    """
    folder, stamp = output / "samples", output / "samples_request.json"
    words = ["--prompts_csv", str(wanted.prompts_csv), "--num_images", str(wanted.num_images)]
    words += ["--output", str(folder)]
    for name in ("sampler", "num_steps", "guidance_scale"):
        if getattr(wanted, name) is not None:
            words += [f"--{name}", str(getattr(wanted, name))]
    if stamp.is_file() and (folder / "samples.jsonl").is_file():
        request = _request(words, wanted, api.load(wanted.model).fingerprint())
        if json.loads(stamp.read_text(encoding="utf-8")) != request:
            raise UserError(
                f"{folder} holds pictures of another model, other prompts or settings: "
                "name another --output, or remove it"
            )
        return folder
    stamp.unlink(missing_ok=True)
    sample.run(["--model", wanted.model, *words])
    # What sample.py noted of the model: loading it again would take as long as before.
    first = (folder / "samples.jsonl").read_text(encoding="utf-8").partition("\n")[0]
    text = json.dumps(_request(words, wanted, json.loads(first)["model_hash"]), indent=2)
    stamp.write_text(text + "\n", encoding="utf-8")
    return folder


def _request(words: list[str], wanted: Sampling, model_hash: str) -> dict:
    """What the pictures depend on; the model by its weights."""
    return {
        "words": words,
        "prompts": wanted.prompts_csv.read_text(encoding="utf-8-sig"),
        "model": model_hash,
    }
