"""Optimizer and schedules against torch and transformers, and the moving average against numpy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from medsd_jax.errors import UserError
from medsd_jax.training.optim import SCHEDULES, make_optimizer, make_schedule
from medsd_jax.training.state import apply_gradients, ema_decay_at, init_state

RATE, TOTAL = 3e-4, 20
ADAMW = {"b1": 0.9, "b2": 0.99, "eps": 1e-6, "weight_decay": 0.1, "clip_norm": 1.0}


def draw_params(seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"a.kernel": (5, 7), "a.bias": (7,), "b.scale": (3,)}
    return {name: scale * rng.standard_normal(s, np.float32) for name, s in shapes.items()}


@pytest.mark.torch
@pytest.mark.parametrize("warmup", [0, 1, 6])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_is_that_of_transformers(name, warmup):
    torch = pytest.importorskip("torch")
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    theirs = get_scheduler(
        "constant_with_warmup" if name == "constant" else name,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=TOTAL,
    )
    ours = make_schedule(name, RATE, warmup_steps=warmup, total_steps=TOTAL)
    for step in range(TOTAL):
        # Our warm-up is one step ahead of theirs, whose first step has rate 0.
        expected = RATE * (step + 1) / warmup if step < warmup else theirs.get_last_lr()[0]
        assert float(ours(step)) == pytest.approx(expected, rel=1e-5, abs=1e-10), step
        optimizer.step()
        theirs.step()
    if name != "constant":
        assert float(ours(TOTAL)) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("name", SCHEDULES)
def test_warmup_as_long_as_the_training(name):
    rates = make_schedule(name, RATE, warmup_steps=4, total_steps=4)
    np.testing.assert_allclose([rates(i) for i in range(4)], RATE * np.arange(1, 5) / 4, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "warmup", "message"),
    [("polynomial", 0, "'polynomial'"), ("linear", 21, "21"), ("linear", -1, "-1")],
)
def test_wrong_schedule(name, warmup, message):
    with pytest.raises(UserError, match=message):
        make_schedule(name, RATE, warmup_steps=warmup, total_steps=TOTAL)


@pytest.mark.torch
@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_adamw_with_clip_is_that_of_torch(clip_norm):
    """Gradients below and above the clip norm, and a rate that changes every step."""
    torch = pytest.importorskip("torch")
    schedule = make_schedule("cosine", RATE, warmup_steps=2, total_steps=6)
    tx = make_optimizer(schedule, **{**ADAMW, "clip_norm": clip_norm})
    state = init_state(draw_params(0), tx, ema=False)
    weights = {name: torch.nn.Parameter(torch.tensor(x)) for name, x in draw_params(0).items()}
    theirs = torch.optim.AdamW(
        weights.values(), betas=(0.9, 0.99), eps=ADAMW["eps"], weight_decay=ADAMW["weight_decay"]
    )
    step = jax.jit(functools.partial(apply_gradients, tx=tx, ema_decay=0.0))
    for i in range(6):
        grads = draw_params(10 + i, scale=0.05 if i % 2 else 3.0)
        for name, weight in weights.items():
            weight.grad = torch.tensor(grads[name])
        norm = torch.nn.utils.clip_grad_norm_(weights.values(), clip_norm or math.inf)
        assert (norm < 1) == (i % 2 == 1)
        theirs.param_groups[0]["lr"] = float(schedule(i))
        theirs.step()
        before = state.trainable
        state, norms = step(state, grads)
        # grad_norm is the norm before clipping.
        assert float(norms["grad_norm"]) == pytest.approx(norm.item(), rel=1e-5)
        moved = [np.asarray(state.trainable[k]) - np.asarray(before[k]) for k in before]
        expected = math.sqrt(sum(np.square(x).sum() for x in moved))
        assert float(norms["update_norm"]) == pytest.approx(expected, rel=1e-3)
        for name, weight in weights.items():
            # torch divides by the norm + 1e-6; one float32 rounding of the weight is 2e-7.
            np.testing.assert_allclose(
                state.trainable[name], weight.detach().numpy(), rtol=0, atol=1e-6, err_msg=name
            )
    assert int(state.step) == 6


def test_no_decay_spares_the_named_weights():
    params = draw_params(1)
    zeros = jax.tree.map(np.zeros_like, params)
    tx = make_optimizer(optax.constant_schedule(0.5), **ADAMW, no_decay=(r"\.bias$", r"^b\."))
    updates, _ = tx.update(zeros, tx.init(params), params)
    np.testing.assert_allclose(updates["a.kernel"], -0.5 * 0.1 * params["a.kernel"], rtol=1e-6)
    assert not np.any(updates["a.bias"]) and not np.any(updates["b.scale"])


@pytest.mark.parametrize("pattern", ["(", r"\.biass$"])
def test_wrong_no_decay(pattern):
    with pytest.raises(UserError, match="no_decay"):
        tx = make_optimizer(optax.constant_schedule(0.5), **ADAMW, no_decay=(pattern,))
        tx.init(draw_params(1))


def test_moving_average():
    """Against numpy in float64, with the short memory of the first steps."""
    tx = optax.sgd(0.1)
    state = init_state(draw_params(2), tx, ema=True)
    step = jax.jit(functools.partial(apply_gradients, tx=tx, ema_decay=0.3))
    weights = {name: x.astype(np.float64) for name, x in draw_params(2).items()}
    average = dict(weights)
    decays = []
    for i in range(6):
        grads = draw_params(20 + i)
        state, _ = step(state, grads)
        decays.append(min(0.3, (1 + i) / (10 + i)))
        for name in weights:
            weights[name] = weights[name] - 0.1 * grads[name]
            average[name] = decays[-1] * average[name] + (1 - decays[-1]) * weights[name]
    assert decays[0] == 0.1 and decays[-1] == 0.3  # the test has seen both regimes
    for name in weights:
        np.testing.assert_allclose(state.trainable[name], weights[name], rtol=0, atol=1e-6)
        np.testing.assert_allclose(state.averaged[name], average[name], rtol=0, atol=1e-6)
        assert not np.allclose(state.trainable[name], state.averaged[name], atol=1e-3)


def test_no_moving_average():
    state = init_state(draw_params(2), optax.sgd(0.1), ema=False)
    assert state.ema is None and state.averaged is state.trainable


def test_moving_average_has_the_decay_in_the_long_run():
    assert float(ema_decay_at(jnp.int32(10**6), 0.9999)) == np.float32(0.9999)
