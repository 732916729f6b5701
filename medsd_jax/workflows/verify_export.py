"""A diffusers folder, and whether torch computes the same with it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from medsd_jax.data.findings import PAPER_NORMAL
from medsd_jax.evaluation.reports.programs import ComponentCheck, ExportCertificate, ImageCheck
from medsd_jax.interop import torch_verify
from medsd_jax.interop.tokenization import encode_prompts
from medsd_jax.interop.torch_verify import COMPONENTS, compare, torch_versions
from medsd_jax.models.stable_diffusion import StableDiffusion
from medsd_jax.parallel.mesh import make_mesh
from medsd_jax.reports.writing import package_versions, write_report
from medsd_jax.sampling.images import save_png
from medsd_jax.workflows.models import save
from medsd_jax.workflows.sample import sample

CERTIFICATE = "certificate.json"
IMAGES = ("jax.png", "torch.png", "difference.png")
COMPONENT_THRESHOLD = 1e-4
"""Largest difference of a network's outputs, as a share of the largest output."""
IMAGE_THRESHOLD = 0.5
"""Mean difference of the finished images, in steps of 1/255."""
AMPLIFICATION = 64
"""difference.png: one step of 1/255 shows as 64, four and more as white."""
NEGATIVE_PROMPT = ""
SEED = 0


def export(
    model: StableDiffusion,
    output: Path,
    *,
    dtype: str = "float32",
    verify_steps: int | None = None,
    source: str | None = None,
) -> ExportCertificate | None:
    """Writes a diffusers folder and, if asked, compares it with what torch makes of it.

    Args:
        model: what is exported.
        output: the folder.
        dtype: of the stored weights.
        verify_steps: of DDIM, for the comparison; None: nothing is compared.
        source: where the model came from, for the certificate.

    Returns:
        The certificate, which is in OUTPUT/certificate.json, too; None where nothing was compared.
    """
    for name in (CERTIFICATE, *IMAGES):  # they would vouch for weights that they never saw
        (output / name).unlink(missing_ok=True)
    save(model, output, dtype=dtype)
    if verify_steps is None:
        return None
    certificate = verify(model, output, dtype=dtype, num_steps=verify_steps)
    # The images' metadata are without it.
    certificate = replace(certificate, settings={**certificate.settings, "model": source})
    write_report(output / CERTIFICATE, certificate)
    return certificate


def verify(
    model: StableDiffusion, folder: Path, *, dtype: str, num_steps: int = 10
) -> ExportCertificate:
    """Compares a model with what torch makes of its exported folder, and writes the images.

    Args:
        model: what was exported.
        folder: where it was exported to; gets the images.
        dtype: of the stored weights.
        num_steps: of DDIM.

    Returns:
        The certificate; numbers that are not finite are None.
    """
    size = model.unet.sample_size * model.vae.downscale
    settings = {
        "prompt": PAPER_NORMAL, "negative_prompt": NEGATIVE_PROMPT, "seed": SEED, "sampler": "ddim",
        "num_steps": num_steps, "guidance_scale": 7.5, "eta": 0.0, "height": size, "width": size,
        "weights_dtype": dtype, "compute_dtype": "float32", "model_hash": model.fingerprint(),
    }  # fmt: skip
    certificate = ExportCertificate(
        versions=package_versions() | torch_versions(),
        passed=False,
        thresholds={
            "component_max_abs_difference_over_output_max_abs": COMPONENT_THRESHOLD,
            "image_mean_abs_difference_in_255ths": IMAGE_THRESHOLD,
        },
        settings=settings,
    )
    try:
        theirs = torch_verify.TorchPipeline(folder)
    except (OSError, ValueError, TypeError, RuntimeError, KeyError) as error:
        # A folder that torch refuses is a failed check, and not this program's error.
        return replace(certificate, error=f"{type(error).__name__}: {error}")

    prompts = [PAPER_NORMAL, NEGATIVE_PROMPT]
    ids = encode_prompts(model.tokenizer, prompts)
    same_prompt_ids = np.array_equal(ids, theirs.prompt_ids(prompts))
    model = torch_verify.as_stored(model, dtype)
    inputs = torch_verify.make_component_inputs(model, ids, size, size, SEED)
    ours = torch_verify.our_components(model, inputs)
    components = _compare_components(ours, theirs.components(inputs))

    latents = inputs.latents[:1]
    jax_image = _sample_ours(model, latents, settings)
    torch_image = theirs.sample(
        PAPER_NORMAL, NEGATIVE_PROMPT, latents, num_inference_steps=num_steps,
        guidance_scale=settings["guidance_scale"], eta=0.0, height=size, width=size,
    )[0]  # fmt: skip
    difference = np.abs(jax_image.astype(int) - torch_image.astype(int))
    mean = float(difference.mean())
    image = ImageCheck(
        mean_abs_difference_in_255ths=mean,
        max_abs_difference_in_255ths=int(difference.max()),
        difference_png_amplification=AMPLIFICATION,
        passed=mean <= IMAGE_THRESHOLD,
    )
    _write_images(folder, jax_image, torch_image, difference, settings)
    return replace(
        certificate,
        passed=same_prompt_ids
        and image.passed
        and all(result.passed for result in components.values()),
        same_prompt_ids=same_prompt_ids,
        components=components,
        image=image,
    )


def summary(certificate: ExportCertificate) -> str:
    """The certificate's numbers for the terminal; the first word is PASS or FAIL."""
    result = "PASS" if certificate.passed else "FAIL"
    if certificate.error is not None:
        return f"{result}: torch cannot load the folder: {certificate.error}"
    lines = [f"{result}: medsd_jax against torch diffusers, the same weights, float32"]
    for name, check in certificate.components.items():
        lines.append(
            f"  {_mark(check)} {name:12}  max difference {_number(check.max_abs_difference)}, "
            f"mean {_number(check.mean_abs_difference)}, outputs up to "
            f"{_number(check.output_max_abs)} (ratio {_number(check.ratio)}, at most "
            f"{COMPONENT_THRESHOLD:g})"
        )
    image = certificate.image
    lines.append(
        f"  {_mark(image)} image       mean difference "
        f"{image.mean_abs_difference_in_255ths:.4f}/255 (at most {IMAGE_THRESHOLD:g}/255), "
        f"max {image.max_abs_difference_in_255ths}/255"
    )
    if not certificate.same_prompt_ids:
        lines.append("  FAIL tokenizer     the folder's tokenizer gives other token ids")
    return "\n".join(lines)


def _mark(check: ComponentCheck | ImageCheck) -> str:
    return "ok  " if check.passed else "FAIL"


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}"


def _compare_components(
    ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]
) -> dict[str, ComponentCheck]:

    results = {}
    for name in COMPONENTS:
        numbers = compare(ours[name], theirs[name])
        scale = numbers["output_max_abs"] or 1.0  # a network may give nothing but zeros
        numbers["ratio"] = numbers["max_abs_difference"] / scale
        passed = np.isfinite(scale) and numbers["ratio"] <= COMPONENT_THRESHOLD  # not so for nan
        finite = {key: value if np.isfinite(value) else None for key, value in numbers.items()}
        results[name] = ComponentCheck(**finite, passed=bool(passed))
    return results


def _sample_ours(
    model: StableDiffusion, latents: np.ndarray, settings: dict[str, Any]
) -> np.ndarray:
    """One image [H, W, 3] uint8 on one device, in true float32 on accelerators too."""
    with jax.default_matmul_precision("highest"):
        return sample(
            model, [settings["prompt"]], negative_prompts=settings["negative_prompt"],
            seeds=[settings["seed"]], latents=latents, num_steps=settings["num_steps"],
            guidance_scale=settings["guidance_scale"], eta=settings["eta"],
            height=settings["height"], width=settings["width"],
            mesh=make_mesh({}, jax.local_devices()[:1]), progress=False,
        )[0]  # fmt: skip


def _write_images(
    folder: Path,
    jax_image: np.ndarray,
    torch_image: np.ndarray,
    difference: np.ndarray,
    settings: dict[str, Any],
) -> None:

    amplified = np.minimum(difference * AMPLIFICATION, 255).astype(np.uint8)
    metadata = ({"framework": "jax"}, {"framework": "torch"}, {"amplification": AMPLIFICATION})
    images = (jax_image, torch_image, amplified)
    for name, image, note in zip(IMAGES, images, metadata, strict=True):
        save_png(image, folder / name, {**settings, **note})
