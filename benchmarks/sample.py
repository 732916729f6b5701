"""Sampling with DDIM and guidance, then the VAE decoder: ours beside torch diffusers.

    python benchmarks/sample.py [--size small] [--steps 20] [--repeats 5] >> results.jsonl

Start latents and both text contexts are given (no text encoder); each of the steps evaluates the
U-Net once on a batch that guidance doubles. Weights are the same on both sides.
"""

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # when run as a script

from benchmarks import harness  # before jax, see there

# isort: split
import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import timing
from medsd_jax.diffusion.guidance import guided
from medsd_jax.diffusion.samplers import SAMPLERS, make_step_table
from medsd_jax.diffusion.sampling_loop import run_sampler
from medsd_jax.diffusion.schedule import NoiseSchedule, ScheduleConfig
from medsd_jax.models.params import bind

GUIDANCE_SCALE = 7.5
IMAGE_TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-1}
"""Guidance multiplies a difference of two roundings by its scale, in each step: the worst pixel of
the small size was 3e-2 off in bfloat16. Images of other noise differ by about 1."""
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "clip_sample": False,
}


def make_inputs(setting: harness.Setting) -> dict[str, np.ndarray]:
    """Start latents [B, h, w, C], context and negative context [B, S, D], all float32."""
    rng = np.random.default_rng(0)
    unet, b = setting.size.unet, setting.batch
    start = (b, unet.sample_size, unet.sample_size, unet.in_channels)
    context = (b, setting.size.tokens, unet.cross_attention_dim)
    return {
        "start": rng.standard_normal(start, np.float32),
        "context": rng.standard_normal(context, np.float32),
        "negative": rng.standard_normal(context, np.float32),
    }


def ours(
    setting: harness.Setting, unet_module: Any, vae_module: Any, inputs: dict[str, np.ndarray]
) -> tuple[timing.Contestant, dict[str, Any]]:
    """Our one compiled program, its compile seconds and FLOPs."""
    unet, unet_weights = harness.our_network(setting.size.unet, unet_module, setting)
    vae, vae_weights = harness.our_network(setting.size.vae, vae_module, setting)
    config = ScheduleConfig.from_dict({"_class_name": "DDIMScheduler", **SCHEDULE})
    schedule = NoiseSchedule.from_config(config)
    weights = {"unet": unet_weights, "vae": vae_weights}
    step_table = make_step_table("ddim", config, setting.steps, setting.steps)
    arrays = jax.device_put(inputs)

    def predict(weights, x, t, arrays, graph=unet):
        run = guided(bind(graph, weights["unet"]), GUIDANCE_SCALE)
        return run(x, t, arrays["context"], arrays["negative"])

    def decode(weights, latents, graph=vae):
        return bind(graph, weights["vae"]).decode(latents / setting.size.vae.scaling_factor)

    def generate(weights, arrays, step_table):
        latents = run_sampler(
            SAMPLERS["ddim"],
            lambda x, t: predict(weights, x, t, arrays),
            schedule, arrays["start"], step_table, lambda i: jnp.zeros_like(arrays["start"]),
        )  # fmt: skip
        return decode(weights, latents)

    step_table = jax.device_put(step_table)
    program, seconds = harness.compile_ours(generate, weights, arrays, step_table)
    t = jnp.zeros(setting.batch, jnp.int32)
    plain_unet, plain_vae = (
        harness.our_structure(config, setting, "xla")[0]
        for config in (setting.size.unet, setting.size.vae)
    )
    start = arrays["start"]
    one_step = harness.count_flops(
        functools.partial(predict, graph=plain_unet), weights, start, t, arrays
    )
    decoding = harness.count_flops(functools.partial(decode, graph=plain_vae), weights, start)

    def run() -> np.ndarray:
        return np.asarray(program(weights, arrays, step_table))

    facts = {
        "flops": setting.steps * one_step + decoding,
        "compile_seconds": seconds,
        "temporary_gib": {"ours": harness.our_temporaries(program)},
    }
    return timing.Contestant("ours", run), facts


def torchs(
    name: str, setting: harness.Setting, modules: tuple[Any, Any], inputs: dict[str, np.ndarray]
) -> timing.Contestant:
    """The same in torch, written as diffusers' pipeline does it."""
    scheduler = diffusers.DDIMScheduler(**SCHEDULE)
    start = harness.to_torch_image(inputs["start"], setting).to(setting.torch_dtype)
    contexts = torch.from_numpy(np.concatenate([inputs["negative"], inputs["context"]]))
    contexts = contexts.to(setting.torch_device, setting.torch_dtype)
    unet, vae = modules
    decode: Callable = vae.decode
    if name == "torch_compile":
        unet, decode = torch.compile(unet), torch.compile(vae.decode)

    @torch.inference_mode()
    def run() -> np.ndarray:
        scheduler.set_timesteps(setting.steps, device=setting.torch_device)
        latents = start * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            doubled = scheduler.scale_model_input(torch.cat([latents, latents]), t)
            negative, positive = unet(doubled, t, contexts, return_dict=False)[0].chunk(2)
            output = negative + GUIDANCE_SCALE * (positive - negative)
            latents = scheduler.step(output, t, latents, return_dict=False)[0]
        images = decode(latents / setting.size.vae.scaling_factor, return_dict=False)[0]
        return np.moveaxis(images.float().cpu().numpy(), 1, -1)

    return timing.Contestant(name, run)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the benchmark, prints its line and returns it."""
    setting = harness.parse(
        argv, "DDIM sampling, ours beside torch", steps=20, steps_help="DDIM steps"
    )
    setting = harness.with_batch(setting, setting.size.sample_batch)
    record = {"benchmark": "sample", **harness.describe(setting), "steps": setting.steps}
    inputs = make_inputs(setting)
    modules = tuple(
        harness.torch_network(config, setting).eval()
        for config in (setting.size.unet, setting.size.vae)
    )
    our_contestant, facts = ours(setting, *modules, inputs)
    # After ours took the float32 weights: torch's own are of the compute dtype, as users have it.
    modules = tuple(module.to(setting.torch_dtype) for module in modules)
    seconds, images = timing.first_call(our_contestant)
    record |= {**facts, "images": list(images.shape), "first_call_seconds": {"ours": seconds}}
    contestants, their_images = harness.torch_contestants(
        lambda name: torchs(name, setting, modules, inputs), setting, record
    )
    tolerance = IMAGE_TOLERANCE[setting.dtype]
    harness.compare(record, "image_relative_difference", images, their_images, tolerance)
    contestants = [c for c in contestants if c.name not in record["failed"]]
    rounds = timing.interleave([our_contestant, *contestants], calls=1, repeats=setting.repeats)
    record |= timing.report(rounds, record["flops"])
    record["temporary_gib"]["torch_eager"] = harness.torch_temporaries(contestants[0])
    harness.print_json(record)
    return record


if __name__ == "__main__":
    main()
