"""One optimizer step of the U-Net: ours beside torch diffusers, same weights, same batch.

    python benchmarks/train_step.py [--size small] [--steps 3] [--repeats 5] >> results.jsonl

A step is: noise the given latents, U-Net forward, mean squared error, backward, clip the gradient
to norm 1, AdamW. Latents, text context, noise and timesteps are given: no VAE, no text encoder. The
steps of a round are started one after the other and waited for at its end, as in the train loop.
"""

import copy
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # when run as a script

from benchmarks import harness  # before jax, see there

# isort: split
import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from benchmarks import timing
from medsd_jax.diffusion.loss import diffusion_loss
from medsd_jax.diffusion.process import add_noise, target
from medsd_jax.diffusion.schedule import NoiseSchedule, ScheduleConfig
from medsd_jax.models.params import bind
from medsd_jax.training.accumulation import accumulated_grad
from medsd_jax.training.optim import make_optimizer
from medsd_jax.training.state import TrainState, apply_gradients, init_state

OPTIMIZER = {"learning_rate": 1e-5, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 1e-2}
CLIP_NORM = 1.0
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}


def make_batch(setting: harness.Setting) -> dict[str, np.ndarray]:
    """Random latents, noise [B, h, w, C], context [B, S, D] float32 and timesteps [B] int32."""
    rng = np.random.default_rng(0)
    unet, b = setting.size.unet, setting.batch
    shape = (b, unet.sample_size, unet.sample_size, unet.in_channels)
    context = (b, setting.size.tokens, unet.cross_attention_dim)
    return {
        "latents": rng.standard_normal(shape, np.float32),
        "noise": rng.standard_normal(shape, np.float32),
        "context": rng.standard_normal(context, np.float32),
        "timesteps": rng.integers(0, SCHEDULE["num_train_timesteps"], b, np.int32),
    }


def make_our_step(graph: Any, tx: optax.GradientTransformation) -> Any:
    """The pure step (state, batch) -> (state, loss), from the parts of the training package."""
    schedule = NoiseSchedule.from_config(
        ScheduleConfig.from_dict({"_class_name": "DDPMScheduler", **SCHEDULE})
    )

    def loss_fn(weights, batch):
        latents, noise, times = batch["latents"], batch["noise"], batch["timesteps"]
        noisy = add_noise(schedule, latents, noise, times)
        output = bind(graph, weights)(noisy, times, batch["context"])
        return diffusion_loss(output, target(schedule, latents, noise, times)), {}

    def step(state: TrainState, batch):
        scalars, grads = accumulated_grad(loss_fn, state.trainable, batch, 1)
        state, norms = apply_gradients(state, grads, tx, ema_decay=0.0)
        return state, {**scalars, **norms}

    return step


def ours(
    setting: harness.Setting, module: Any, batch: dict
) -> tuple[timing.Contestant, dict[str, Any], jax.stages.Compiled]:
    """Our step, facts about it for the JSON line, and the compiled program."""
    graph, weights = harness.our_network(setting.size.unet, module, setting)
    settings = {k: v for k, v in OPTIMIZER.items() if k != "learning_rate"}
    tx = make_optimizer(
        optax.constant_schedule(OPTIMIZER["learning_rate"]), clip_norm=CLIP_NORM, **settings
    )
    state = jax.jit(lambda w: init_state(jax.tree.map(jnp.copy, w), tx, ema=False))(weights)
    arrays = jax.device_put(batch)
    plain, _ = harness.our_structure(setting.size.unet, setting, "xla")
    flops = harness.count_flops(make_our_step(plain, tx), state, arrays)
    step, seconds = harness.compile_ours(make_our_step(graph, tx), state, arrays, donate_argnums=0)

    def run() -> jax.Array:
        nonlocal state
        state, scalars = step(state, arrays)
        return scalars["loss"]  # of a program, all results are there at once

    facts = {"parameters": sum(math.prod(x.shape) for x in weights.values()), "flops": flops}
    facts |= {"compile_seconds": seconds, "temporary_gib": {"ours": harness.our_temporaries(step)}}
    return timing.Contestant("ours", run, float), facts, step


def torchs(name: str, setting: harness.Setting, module: Any, batch: dict) -> timing.Contestant:
    """The same step in torch; trains `module` in place."""
    scheduler = diffusers.DDPMScheduler(**SCHEDULE)
    latents, noise = (harness.to_torch_image(batch[k], setting) for k in ("latents", "noise"))
    context, times = (
        torch.from_numpy(batch[k]).to(setting.torch_device) for k in ("context", "timesteps")
    )
    times = times.long()
    optimizer = torch.optim.AdamW(
        module.parameters(),
        lr=OPTIMIZER["learning_rate"],
        betas=(OPTIMIZER["b1"], OPTIMIZER["b2"]),
        eps=OPTIMIZER["eps"],
        weight_decay=OPTIMIZER["weight_decay"],
        fused=True,
    )
    call = torch.compile(module) if name == "torch_compile" else module

    def run() -> torch.Tensor:
        noisy = scheduler.add_noise(latents, noise, times)
        with torch.autocast(
            setting.torch_device, dtype=torch.bfloat16, enabled=setting.dtype == "bfloat16"
        ):
            output = call(noisy, times, context, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(output.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def finish(loss: torch.Tensor) -> float:
        harness.synchronize(setting)
        return float(loss)

    return timing.Contestant(name, run, finish)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the benchmark, prints its line and returns it."""
    setting = harness.parse(
        argv, "U-Net train step, ours beside torch", steps=3, steps_help="steps in a round"
    )
    setting = harness.with_batch(setting, setting.size.train_batch)
    record = {"benchmark": "train_step", **harness.describe(setting), "steps": setting.steps}
    batch = make_batch(setting)
    module = harness.torch_network(setting.size.unet, setting).train()
    names = ("torch_eager", "torch_compile") if setting.compiled else ("torch_eager",)
    modules = {name: copy.deepcopy(module) for name in names}
    our_contestant, facts, _ = ours(setting, module, batch)
    del module
    seconds, our_loss = timing.first_call(our_contestant)
    record |= {**facts, "first_call_seconds": {"ours": seconds}}
    contestants, losses = harness.torch_contestants(
        lambda name: torchs(name, setting, modules.pop(name), batch), setting, record
    )
    record["loss_first"] = {"ours": our_loss, **losses}
    tolerance = timing.TOLERANCE[setting.dtype]
    harness.compare(record, "loss_first_relative_difference", our_loss, losses, tolerance)
    rounds = timing.interleave(
        [our_contestant, *contestants], calls=setting.steps, repeats=setting.repeats
    )
    # After as many updates on both sides: the gradients and the optimizers agree too.
    record["loss_last"] = rounds.results
    losses = rounds.without({"ours"}).results
    harness.compare(
        record, "loss_last_relative_difference", rounds.results["ours"], losses, tolerance
    )
    record |= timing.report(rounds.without(record["failed"]), record["flops"])
    record["temporary_gib"]["torch_eager"] = harness.torch_temporaries(contestants[0])
    harness.print_json(record)
    return record


if __name__ == "__main__":
    main()
