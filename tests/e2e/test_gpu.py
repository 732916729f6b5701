"""A GPU computes what a CPU computes: networks, a train step, images.

Run with JAX_PLATFORMS=cuda,cpu pytest -m gpu: the comparison needs both.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medsd_jax.models import params, unet, vae
from medsd_jax.models.attention import attention_implementation
from medsd_jax.parallel.mesh import make_mesh
from medsd_jax.workflows.sample import sample
from tests.tiny import networks
from tests.tiny.pipeline import SIZE, tiny_pipeline
from tests.tiny.training import make_batch, make_run

pytestmark = pytest.mark.gpu

# Heads 8 and 16 wide: cuDNN's kernel takes multiples of 8.
UNET = dataclasses.replace(networks.UNET_SD1, block_out_channels=(32, 64))
TOLERANCE = 1e-5
"""Of all, in float32: sums in another order. Tiny networks lose 5e-6 against torch."""


@pytest.fixture
def cpu():
    return jax.devices("cpu")[0]


def forward_and_gradient(attend: str, dtype, device) -> dict[str, np.ndarray]:
    """The U-Net's output, and the gradient of its mean square, by weight."""
    make = functools.partial(
        unet.UNet2DConditionModel, UNET, dtype=dtype, attend=attention_implementation(attend)
    )
    graphdef, weights = networks.random_weights(make)
    inputs = networks.unet_inputs(UNET, 16, 16)

    def loss(weights, *inputs):
        out = params.bind(graphdef, weights)(*inputs)
        return jnp.mean(jnp.square(out)), out

    weights, inputs = jax.device_put((weights, inputs), device)
    step = jax.jit(jax.grad(loss, has_aux=True))
    with jax.default_matmul_precision("highest"):  # the default is TF32 on a GPU
        gradient, out = step(weights, *inputs)
    assert out.devices() == {device}
    return {"output": np.asarray(out), **{k: np.asarray(x) for k, x in gradient.items()}}


def difference(ours: dict, theirs: dict) -> float:
    """Of all numbers together, in the norm."""
    a, b = (np.concatenate([np.ravel(x[k]) for k in theirs]) for x in (ours, theirs))
    assert np.isfinite(a).all()
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def test_unet_in_float32(cpu):
    theirs = forward_and_gradient("xla", jnp.float32, cpu)
    for attend in ("auto", "chunked"):
        ours = forward_and_gradient(attend, jnp.float32, jax.devices()[0])
        assert difference(ours, theirs) <= TOLERANCE


def test_unet_in_bfloat16(cpu):
    """As far from float32 as tests/models/test_precision.py measured on a CPU, whatever attends."""
    theirs = forward_and_gradient("xla", jnp.float32, cpu)
    for attend in ("auto", "cudnn", "xla"):
        ours = forward_and_gradient(attend, jnp.bfloat16, jax.devices()[0])
        result = difference(ours, theirs)
        print(f"{attend}: {result:.1e}")
        assert 5e-4 < result < 3e-2


def test_vae(cpu):
    graphdef, weights = networks.random_weights(functools.partial(vae.AutoencoderKL, networks.VAE))
    rng = np.random.default_rng(0)
    inputs = {
        "encode": rng.uniform(-1, 1, (2, 32, 24, 3)).astype(np.float32),
        "decode": rng.standard_normal((2, 8, 6, 4), np.float32),
    }
    for method, x in inputs.items():
        both = []
        for device in (jax.devices()[0], cpu):
            placed = jax.device_put(weights, device)
            with jax.default_device(device), jax.default_matmul_precision("highest"):
                both.append(networks.run(graphdef, placed, x, method=method, jit=jax.jit))
        ours, theirs = (np.concatenate([np.ravel(y) for y in jax.tree.leaves(o)]) for o in both)
        assert np.abs(ours - theirs).max() <= TOLERANCE * np.abs(theirs).max()


def test_train_step(cpu):
    """Random numbers, loss and every gradient of a whole step."""
    step, state, frozen = make_run()
    arguments = (state, frozen, make_batch(4), jax.random.key(3))
    results = []
    for device in (jax.devices()[0], cpu):
        with jax.default_matmul_precision("highest"):
            after, metrics = jax.jit(step)(*jax.device_put(arguments, device))
        gradient = {k: np.asarray(x) for k, x in after.opt_state.items()}
        results.append(({"loss": np.asarray(metrics["loss"])}, gradient))
    (our_loss, ours), (their_loss, theirs) = results
    assert difference(our_loss, their_loss) <= TOLERANCE
    assert difference(ours, theirs) <= TOLERANCE


def images(device, **settings) -> np.ndarray:
    return sample(
        tiny_pipeline(), ["effusion", "clear lung"], negative_prompts=["", "blur"],
        mesh=make_mesh({}, [device]), batch_size=2, num_steps=10, guidance_scale=4.0,
        seeds=[3, 4], progress=False, **settings,
    )  # fmt: skip


def test_images(cpu):
    theirs = images(cpu).astype(int)
    assert theirs.shape == (2, SIZE, SIZE, 3) and theirs.std() > 30
    with jax.default_matmul_precision("highest"):
        ours = images(jax.devices()[0])
    assert np.abs(ours - theirs).mean() <= 0.5  # as against torch: half a level of 255
    for attend in ("auto", "cudnn"):
        ours = images(jax.devices()[0], dtype="bfloat16", attention=attend)
        # Ten steps of 8-bit mantissas and guidance: other images differ by 60 levels and more.
        assert np.abs(ours - theirs).mean() <= 10
