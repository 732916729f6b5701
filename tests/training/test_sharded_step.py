"""Two train steps on 8 virtual devices equal two steps on one."""

import jax
import numpy as np
import optax
import pytest

from medsd_jax.parallel.mesh import make_mesh, put_batch, replicated
from medsd_jax.training.optim import make_optimizer
from medsd_jax.training.sharded_step import shard_step
from tests.tiny.networks import QUICK
from tests.tiny.training import TEXT, UNET, make_batch, make_run

# A large eps: with a small one Adam's first step is the sign of the gradient, and rounding decides
# the sign where the gradient is 0.
TX = {"b1": 0.9, "b2": 0.99, "eps": 1e-2, "weight_decay": 0.1, "clip_norm": 1.0}


def two_steps(axes: dict[str, int], **settings):
    mesh = make_mesh(axes, jax.devices()[: int(np.prod(list(axes.values())))])
    tx = make_optimizer(optax.constant_schedule(1e-2), **TX)
    step, state, frozen = make_run(patterns=(UNET, TEXT), tx=tx, caption_dropout=0.3, **settings)
    step, *places = shard_step(step, state, frozen, mesh, compiler_options=QUICK)
    state, frozen = jax.device_put((state, frozen), tuple(places))
    rng = jax.device_put(jax.random.key(6), replicated(mesh))
    losses = []
    for seed in range(2):
        batch = put_batch(make_batch(8, seed, latents=True), mesh)
        state, metrics = step(state, frozen, batch, rng)
        losses.append(float(metrics["loss"]))
    return state, losses


@pytest.fixture(scope="module")
def one_device():
    return two_steps({"data": 1})


@pytest.mark.parametrize(
    ("axes", "accumulation_steps"),
    [
        pytest.param({"data": 4, "fsdp": 2}, 1, id="data-fsdp"),
        pytest.param(
            {"data": 2, "fsdp": 2, "tensor": 2},
            2,
            id="tensor-accumulation",
            marks=pytest.mark.slow,  # half a minute of compilation
        ),
    ],
)
def test_sharded_equals_one_device(one_device, axes, accumulation_steps):
    expected, wanted_losses = one_device
    state, losses = two_steps(axes, accumulation_steps=accumulation_steps)
    np.testing.assert_allclose(losses, wanted_losses, rtol=1e-5)
    kernel = "unet.mid_block.resnets.0.conv1.kernel"
    for tree in (state.trainable, state.ema):
        assert tree[kernel].addressable_shards[0].data.shape == (3, 3, 32, 16)
    leaves = jax.tree_util.tree_leaves_with_path
    worst = 0.0
    for (path, x), (_, y) in zip(leaves(state), leaves(expected), strict=True):
        worst = max(worst, float(np.abs(np.asarray(x) - np.asarray(y)).max()))
        # A step moves a weight by up to 1e-2; sums over 8 devices are in another order.
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=2e-6, err_msg=str(path))
    print(f"{axes}: losses {losses}, largest difference {worst:.1e}")


def test_the_two_steps_moved_the_weights(one_device):
    """Without this the comparison above could be of two states that never changed."""
    _, start, _ = make_run(patterns=(UNET, TEXT))
    for name, x in one_device[0].trainable.items():
        assert np.abs(np.asarray(x) - np.asarray(start.trainable[name])).max() > 1e-6, name
