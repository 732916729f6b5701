"""What prior preservation is for: the class prompt keeps drawing what it drew before."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from medsd_jax.diffusion.samplers import SAMPLERS, make_step_table
from medsd_jax.diffusion.sampling_loop import run_sampler
from medsd_jax.diffusion.schedule import ScheduleConfig
from medsd_jax.interop.tokenization import encode_prompts
from medsd_jax.models.params import bind, component
from tests.tiny.training import UNET, diffusion_model, make_run, tiny_model

SHAPE = (8, 8, 4)
CLASS, INSTANCE = encode_prompts(tiny_model().tokenizer, ["class", "instance"])


def moments(latents):
    """Posteriors without spread."""
    scaled = latents / tiny_model().vae.scaling_factor
    return np.concatenate([scaled, np.full_like(scaled, -30.0)], axis=-1).astype(np.float32)


def train(start, batches, steps, learning_rate=2e-3, **settings):
    """Trains the U-Net from these weights, batch i % n at step i -> all weights."""
    tx = optax.adam(learning_rate)
    step, state, frozen = make_run(patterns=(UNET,), tx=tx, ema=False, **settings)
    state = state.replace(trainable={k: jnp.asarray(start[k]) for k in state.trainable})
    step = jax.jit(step)
    for i in range(steps):
        state, metrics = step(state, frozen, batches[i % len(batches)], jax.random.key(1))
    return {**start, **state.trainable}, float(metrics["loss"])


def draw(params, seeds):
    """Latents that a model draws of the class prompt, without guidance."""
    model = diffusion_model()
    table = make_step_table("ddim", ScheduleConfig.from_dict(tiny_model().scheduler), 20, 20)

    @jax.jit
    def sample(params, start):
        ids = jnp.tile(CLASS[None], (len(seeds), 1))
        context = bind(model.text_encoder, component(params, "text_encoder"))(ids)
        unet = bind(model.unet, component(params, "unet"))
        return run_sampler(
            SAMPLERS["ddim"], lambda x, t: unet(x, t, context), model.schedule, start, table,
            lambda i: jnp.zeros_like(start),
        )  # fmt: skip

    start = np.stack([np.random.default_rng(seed).standard_normal(SHAPE) for seed in seeds])
    return np.asarray(sample(params, start.astype(np.float32)))


def test_prior_keeps_what_the_class_prompt_draws():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:8, :8] / 7.0 - 0.5
    stripes = np.stack([np.sin(6 * x), np.sin(6 * y), np.cos(6 * x), np.cos(6 * y)], axis=-1)

    def batch(pattern, ids, rows=8):
        latents = pattern + 0.2 * rng.standard_normal((rows, *SHAPE))
        return {"latent_moments": moments(latents), "prompt_ids": np.tile(ids, (rows, 1))}

    start = {k: np.asarray(v) for k, v in tiny_model().params.items()}
    base, loss = train(start, [batch(stripes, CLASS) for _ in range(16)], 300)
    assert loss < 0.6  # it has learnt something to forget
    before = draw(base, range(16))
    prior = moments(draw(base, range(100, 124)))
    mixed = []
    for i in range(3):
        few = batch(-stripes, INSTANCE, 4)
        rows = {"latent_moments": prior[8 * i : 8 * i + 8], "prompt_ids": np.tile(CLASS, (8, 1))}
        both = {k: np.concatenate([few[k], rows[k]]) for k in few}
        mixed.append(both | {"is_prior": np.repeat([0.0, 1.0], [4, 8]).astype(np.float32)})
    alone = [{k: x[:4] for k, x in both.items() if k != "is_prior"} for both in mixed]
    without, _ = train(base, alone, 100)
    with_prior, _ = train(base, mixed, 100, prior_weight=1.0)
    moved = [np.abs(draw(params, range(16)) - before).mean() for params in (without, with_prior)]
    # By how much is chance; twice is far from a draw of luck.
    assert moved[1] < 0.5 * moved[0], moved
