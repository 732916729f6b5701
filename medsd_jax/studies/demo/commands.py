"""What to do after the demo: command lines and Python that run as they stand."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MORE_PROMPTS = ("Chest X-ray. Large left pleural effusion.", "Chest X-ray. Marked cardiomegaly.")


@dataclass(frozen=True)
class NextStep:
    """One thing to try.

    Attributes:
        title: what it does.
        note: what to know before.
        shell: command lines, one command after the other.
        python: lines for a notebook.
    """

    title: str
    note: str
    shell: str = ""
    python: str = ""


def next_steps(output: Path, config: Mapping[str, Any]) -> list[NextStep]:
    """The ways to go on from a finished demo.

    Args:
        output: the demo's folder, which is the trained model too.
        config: of its diffusion run.
    """
    guidance, steps = config["preview"]["guidance_scale"], config["train"]["steps"]
    demo, vae, data = _quote(output), _quote(output / "vae"), _quote(output / "data")
    more, tuned, export = (_quote(output / n) for n in ("more", "fine_tuned", "export"))
    images, prepared = _quote(output / "my_images"), _quote(output / "my_data")
    return [
        NextStep(
            "Sample other prompts",
            "Any words of the captions, any seeds. Prompt, seed and settings are stored in every "
            "PNG and in samples.jsonl.",
            shell=_command(
                f"medsd-jax sample --model {demo} --output {more}",
                *(f'--prompt "{prompt}"' for prompt in MORE_PROMPTS),
                f"--num_images 8 --guidance_scale {guidance:g}",
            ),
        ),
        NextStep(
            "The same from Python",
            "Changing prompts, seeds, steps or guidance compiles nothing anew.",
            python="import medsd_jax\n\n"
            f"model = medsd_jax.load({json.dumps(str(output))})\n"
            f'prompts = ["{MORE_PROMPTS[0]}"] * 4\n'
            "# uint8 [4, H, W, 3]\n"
            "images = medsd_jax.sample(model, prompts, seeds=range(4), "
            f"guidance_scale={guidance:g})",
        ),
        NextStep(
            "Fine-tune on your own folder",
            "A folder of images with metadata.csv: the columns file_name,text and, so that no "
            "patient is in both splits, patient_id. The first command makes such a folder to look "
            "at; put yours in its place.",
            shell=_command(
                "medsd-jax data --source phantom --num_images 400 --seed 1",
                f"--export_folder {images} --output {prepared}",
            )
            + "\n\n"
            + _command(
                f"medsd-jax train --config demo --workdir {tuned}",
                f"--config.model.path={demo}",
                f"--config.data.source=folder --config.data.path={images}",
                "--config.optim.learning_rate=1e-4 --config.train.steps=300",
            ),
        ),
        NextStep(
            "Export to PyTorch, checked",
            "Writes a diffusers folder and runs both frameworks on the same noise: "
            "certificate.json tells the differences. Needs PyTorch and diffusers.",
            shell=_command(f"medsd-jax export --model {demo} --output {export} --verify"),
            python="from diffusers import StableDiffusionPipeline\n\n"
            f"pipe = StableDiffusionPipeline.from_pretrained({json.dumps(str(output / 'export'))})",
        ),
        NextStep(
            "Train on, and resume",
            "The first command goes on from the last checkpoint, to twice the steps. Interrupt it "
            "with Ctrl-C: the same command resumes it. The second one makes this page anew.",
            shell=_command(
                f"medsd-jax train --config demo --workdir {demo}",
                f"--config.model.path={vae} --config.data.cache_dir={data}",
                f"--config.optim.warmup_steps={config['optim']['warmup_steps']}"
                f" --config.train.steps={2 * steps}",
            )
            + "\n\n"
            + _command(f"medsd-jax demo --output {demo}"),
        ),
    ]


def _quote(path: Path) -> str:
    return shlex.quote(str(path))


def _command(*parts: str) -> str:
    return " \\\n    ".join(parts)
