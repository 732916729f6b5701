"""float32 is float32 in whole programs: TPUs and GPUs round its products unless each one says no.

What the programs ask for is read from their traces, because CPUs multiply exactly in any case.
"""

import jax
import numpy as np
import pytest

from medsd_jax.adaptation.lora import merge
from medsd_jax.parallel.mesh import make_mesh
from medsd_jax.sampling.inputs import SamplerShape, make_inputs
from medsd_jax.sampling.sampler import make_generate
from medsd_jax.training.step import make_eval_step
from medsd_jax.workflows.sample import schedule_of
from medsd_jax.workflows.train import latents as train_latents
from medsd_jax.workflows.train.steps import make_diffusion_model
from tests.models.test_precision import equations
from tests.tiny.pipeline import LENGTH, SIZE, tiny_pipeline
from tests.tiny.training import empty_prompt_ids, full, make_batch, make_run, tiny_model

HIGHEST = jax.lax.Precision.HIGHEST


@pytest.fixture(autouse=True)
def _defaults_of_jax():
    with jax.default_matmul_precision(None):
        yield


def precisions(program, *arguments) -> list:
    """What every product of the program asks for, in its order."""
    traced = jax.make_jaxpr(program)(*arguments)
    products = ("dot_general", "conv_general_dilated")
    result = [
        e.params["precision"] for e in equations(traced.jaxpr) if e.primitive.name in products
    ]
    assert result
    return result


def is_exact(precision) -> bool:
    return precision in (HIGHEST, (HIGHEST, HIGHEST))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sampling(dtype):
    model = tiny_pipeline()
    shape = SamplerShape(
        model.unet, model.vae, model.text_encoder, schedule_of(model), SIZE, SIZE, dtype=dtype
    )
    ids = np.zeros((2, LENGTH), np.int32)
    inputs = make_inputs(shape, ids, ids, np.arange(2), num_steps=3, guidance_scale=4.0)
    asked = precisions(make_generate(shape), model.params, inputs)
    assert {is_exact(x) for x in asked} == {dtype == "float32"}


@pytest.mark.parametrize("latents", [False, True])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_train_step_with_its_gradient(latents, steps):
    step, state, frozen = make_run(accumulation_steps=steps)
    forward = precisions(
        make_eval_step(
            make_diffusion_model(tiny_model(), dtype="float32", attention="xla", remat=False),
            full((r"^unet\.",)),
            empty_prompt_ids=empty_prompt_ids(),
        ),
        state.trainable, frozen, {**make_batch(4, latents=latents), "mask": np.ones(4, np.float32)},
        jax.random.key(0), np.int32(0),
    )  # fmt: skip
    asked = precisions(step, state, frozen, make_batch(4, latents=latents), jax.random.key(0))
    assert len(asked) > 1.5 * len(forward)  # the gradient's are among them
    assert all(is_exact(x) for x in forward + asked)


def test_cached_latents(monkeypatch):
    encode = train_latents.make_encoder(tiny_pipeline(), make_mesh({}, jax.devices()[:1]))
    monkeypatch.setattr(train_latents, "fetch", lambda x: x)
    monkeypatch.setattr(train_latents, "put_batch", lambda batch, mesh: batch)
    asked = precisions(encode, np.zeros((2, SIZE, SIZE, 3), np.uint8))
    assert all(is_exact(x) for x in asked)


def test_merged_lora():
    kernel = {"unet.to_q.kernel": np.zeros((4, 6), np.float32)}
    matrices = {
        "unet.to_q.lora_A.kernel": np.ones((4, 2), np.float32),
        "unet.to_q.lora_B.kernel": np.ones((2, 6), np.float32),
    }
    assert all(is_exact(x) for x in precisions(lambda m: merge(kernel, m, 1.0), matrices))
