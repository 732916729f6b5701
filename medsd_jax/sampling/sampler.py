"""Prompt ids to 8-bit images: ONE jitted program.

Prompts, negative prompts, seeds, guidance, eta and the number of steps are arguments of the
program, so changing any of them compiles nothing. Shapes (batch, height, width), the largest number
of steps, the sampler's name, whether images are edited, the compute dtype and the model's
structure are what it is compiled for.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike

from medsd_jax.arrays import Params, from_uint8_rounded_once, to_uint8
from medsd_jax.diffusion.guidance import guided
from medsd_jax.diffusion.samplers import SAMPLERS
from medsd_jax.diffusion.sampling_loop import run_sampler
from medsd_jax.diffusion.schedule import NoiseSchedule
from medsd_jax.models.networks import networks
from medsd_jax.models.params import bind, component
from medsd_jax.parallel.mesh import batch_sharding, replicated
from medsd_jax.parallel.multihost import put_global
from medsd_jax.parallel.sharding import tree_shardings
from medsd_jax.sampling.editing import blend, redrawn_cells
from medsd_jax.sampling.finite import finite_flags
from medsd_jax.sampling.inputs import SampleInputs, SamplerShape


class Generated(NamedTuple):
    """What the program gives.

    Attributes:
        images_u8: [B, H, W, 3] uint8.
        finite: [B, 4] bool, whether each of `finite.PARTS` gave finite values for this image.
    """

    images_u8: Any
    finite: Any


def make_generate(shape: SamplerShape) -> Callable[[Params, SampleInputs], Generated]:
    """Returns the pure ``generate(params, inputs)``."""
    shape.check()
    unet, vae, text_encoder = networks(
        shape.unet, shape.vae, shape.text_encoder, dtype=shape.dtype, attention=shape.attention
    )
    schedule, sampler = NoiseSchedule.from_config(shape.schedule), SAMPLERS[shape.sampler]

    def generate(params: Params, inputs: SampleInputs) -> Generated:
        encode = bind(text_encoder, component(params, "text_encoder"))
        denoise = bind(unet, component(params, "unet"))
        context, negative = encode(inputs.prompt_ids), encode(inputs.negative_ids)

        keys = jax.vmap(jax.random.key)(inputs.seeds)
        draw = jax.vmap(lambda key: jax.random.normal(key, shape.latents))

        def fresh_keys(i: ArrayLike) -> jax.Array:
            """The i-th key of every image; 0 is for the start, i + 1 for call i."""
            return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, i)

        unit_noise = jnp.where(inputs.use_start, inputs.start, draw(fresh_keys(0)))

        autoencoder = bind(vae, component(params, "vae"))
        if shape.edits:
            # The posterior's mean: what it is unsure about need not be drawn anew where the
            # image stays. diffusers' image-to-image draws from the posterior.
            mean, _ = autoencoder.encode(from_uint8_rounded_once(inputs.given_u8))
            known = mean * shape.vae.scaling_factor
            cells = redrawn_cells(inputs.weights, shape.vae.downscale)
            start = inputs.step_table.noised(0, known, unit_noise)

            def after_call(i: jax.Array, x: jax.Array) -> jax.Array:
                return jnp.where(cells, x, inputs.step_table.noised(i + 1, known, unit_noise))
        else:
            known = unit_noise
            start = inputs.step_table.start_scale * unit_noise

            def after_call(i: jax.Array, x: jax.Array) -> jax.Array:
                return x

        predict = guided(denoise, inputs.guidance_scale, inputs.guidance_rescale)
        latents = run_sampler(
            sampler,
            lambda x, t: predict(x, t, context, negative),
            schedule,
            start,
            inputs.step_table,
            lambda i: draw(fresh_keys(i + 1)),
            after_call,
        )
        images = autoencoder.decode(latents / shape.vae.scaling_factor)
        texts = jnp.stack([context, negative], axis=1)
        edited = blend(images, inputs.given_u8, inputs.weights) if shape.edits else to_uint8(images)
        return Generated(edited, finite_flags(texts, known, latents, images))

    return generate


@functools.lru_cache(maxsize=8)
def compiled_sampler(
    shape: SamplerShape, mesh: Mesh
) -> Callable[[Params, SampleInputs], Generated]:
    """The jitted program of `shape` on `mesh`: batch rows spread over all data and fsdp shards.

    Cached, so a notebook that samples twice compiles once.
    """
    # Params come already placed (place_params); their shardings are taken as they are.
    return jax.jit(
        make_generate(shape),
        in_shardings=(None, _input_shardings(mesh, replicated(mesh), shape.edits)),
        out_shardings=Generated(batch_sharding(mesh), batch_sharding(mesh)),
    )


def _input_shardings(mesh: Mesh, step_table: Any, edits: bool) -> SampleInputs:
    rows, whole = batch_sharding(mesh), replicated(mesh)
    return SampleInputs(
        prompt_ids=rows,
        negative_ids=rows,
        seeds=rows,
        start=rows,
        use_start=whole,
        step_table=step_table,
        guidance_scale=whole,
        guidance_rescale=whole,
        given_u8=rows if edits else None,
        weights=rows if edits else None,
    )


def place_params(params: Mapping[str, jax.Array | np.ndarray], mesh: Mesh) -> Params:
    """Puts the weights onto the mesh by the sharding table."""
    return put_global(dict(params), tree_shardings(params, mesh))


def place_inputs(inputs: SampleInputs, mesh: Mesh) -> SampleInputs:
    """Puts one batch of requests onto the mesh; every process holds the whole batch."""
    step_table = jax.tree.map(lambda table: replicated(mesh), inputs.step_table)
    edits = inputs.given_u8 is not None
    return put_global(inputs, _input_shardings(mesh, step_table, edits))
