"""The training loop, top to bottom: mesh, input, shardings, state, restore, compile, loop, hand over.

Data, previews and the final export arrive as functions, so that this file is about training alone.
"""

import logging
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from tqdm import tqdm

from medsd_jax.adaptation.adaptation import Adaptation, frozen_params
from medsd_jax.arrays import Params
from medsd_jax.parallel.mesh import batch_sharding, put_batch, replicated
from medsd_jax.parallel.sharding import bytes_per_device, tree_shardings
from medsd_jax.training.checkpoint import Checkpoints
from medsd_jax.training.metrics import ScalarWriter, Throughput, check_finite
from medsd_jax.training.state import TrainState, init_state

log = logging.getLogger(__name__)


class BatchIterator(Protocol):
    """A checkpointable stream of host batches."""

    def __next__(self) -> dict[str, np.ndarray]:
        """The next batch of this process."""

    def get_state(self) -> bytes:
        """The position after the last batch."""

    def set_state(self, state: bytes) -> None:
        """Goes back to a position."""


@dataclass(frozen=True)
class LoopSettings:
    """How long, and how often what. All numbers count optimizer steps; 0 means never.

    Attributes:
        steps: to train in all, those before a resume included.
        seed: of the run's random key.
        ema: keep a moving average.
        log_every: scalars are fetched, checked and written.
        checkpoint_every: the state is saved (and at the end).
        keep_checkpoints: newest ones kept.
        validate_every: validation loss (and at step 0 and the end).
        validation_seed: of its fixed noise.
        preview_every: sample pictures (and at the end).
    """

    steps: int
    seed: int
    ema: bool
    log_every: int
    checkpoint_every: int
    keep_checkpoints: int
    validate_every: int
    validation_seed: int
    preview_every: int


def train(
    workdir: Path,
    settings: LoopSettings,
    *,
    mesh: Mesh,
    params: Params,
    adaptation: Adaptation,
    tx: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    train_step: Callable,
    eval_step: Callable,
    batches: BatchIterator,
    validation: Callable[[], Iterator[dict[str, np.ndarray]]],
    preview: Callable[[Params, int], None] | None,
    config: dict[str, Any],
) -> Params:
    """Trains and returns the model's weights after the last step (the moving average where there is one).

    Args:
        workdir: checkpoints/, metrics.jsonl and tensorboard/ go here; a checkpoint found here is resumed.
        settings: lengths and intervals.
        mesh: device mesh.
        params: the model's weights, on the host.
        adaptation: which numbers are trained.
        tx: optimizer.
        learning_rate: for the log.
        train_step: ``(state, frozen, batch, rng) -> (state, metrics)``.
        eval_step: ``(trainable, frozen, batch, rng) -> (sum of losses, number of examples)``.
        batches: training batches, this process's rows.
        validation: returns the fixed validation batches, from the first.
        preview: ``(params, step)``, writes sample pictures.
        config: the run's config as plain values, kept in the checkpoints.

    Raises:
        FloatingPointError: the loss or a norm is not finite.
    """
    # -- Shapes and places first: no array exists on a device yet ----------------------------------
    rng = jax.device_put(jax.random.key(settings.seed), replicated(mesh))
    trainable = adaptation.init(params, jax.random.key(settings.seed + 1))
    frozen = frozen_params(params, trainable)
    make_state = lambda trainable: init_state(trainable, tx, ema=settings.ema)  # noqa: E731
    state_shapes = jax.eval_shape(make_state, trainable)
    state_sharding, frozen_sharding = tree_shardings(state_shapes, mesh), tree_shardings(frozen, mesh)
    log.info(
        "training %s of %s weights; %.2f GiB of state and %.2f GiB of frozen weights a device; mesh %s",
        f"{_count(trainable):,}", f"{_count(trainable) + _count(frozen):,}",
        bytes_per_device(state_shapes, state_sharding) / 2**30, bytes_per_device(frozen, frozen_sharding) / 2**30,
        dict(mesh.shape),
    )  # fmt: skip

    # -- State: the newest checkpoint if there is one, else step 0 ------------------------------------
    checkpoints = Checkpoints(workdir, keep=settings.keep_checkpoints)
    frozen = jax.device_put(frozen, frozen_sharding)
    if checkpoints.latest_step is not None:
        like = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state_shapes, state_sharding
        )
        state, position = checkpoints.restore(like)
        batches.set_state(position)
        log.info("resumed %s from step %d", workdir, int(state.step))
    else:
        trainable = jax.device_put(trainable, tree_shardings(trainable, mesh))
        state = jax.jit(make_state, out_shardings=state_sharding)(trainable)
    del params, trainable  # the host copy would be stale from the first step on
    start = int(state.step)
    if start >= settings.steps:
        log.info("step %d of %d is done already", start, settings.steps)

    # -- Compile ------------------------------------------------------------------------------------
    rows, whole = batch_sharding(mesh), replicated(mesh)
    step_fn = jax.jit(
        train_step,
        in_shardings=(state_sharding, frozen_sharding, rows, whole),
        out_shardings=(state_sharding, whole),
        donate_argnums=0,
    )
    eval_fn = jax.jit(eval_step, out_shardings=whole)
    writer = ScalarWriter(workdir, truncate_after=start)
    interrupted = _Interrupt()

    def validate(state: TrainState, step: int) -> None:
        total, count = 0.0, 0.0
        for i, batch in enumerate(validation()):
            key = jax.random.fold_in(jax.random.key(settings.validation_seed), i)
            losses, examples = eval_fn(state.averaged, frozen, put_batch(batch, mesh), key)
            total, count = total + float(losses), count + float(examples)
        writer.write(step, {"validation/loss": total / count})
        bar.write(f"step {step}: validation loss {total / count:.5f}")

    def look(state: TrainState, step: int) -> None:
        preview(adaptation.apply(frozen, state.averaged), step)

    def save(state: TrainState, step: int) -> None:
        checkpoints.save(step, state, data=batches.get_state(), config=config)

    # -- Loop ---------------------------------------------------------------------------------------
    bar = tqdm(total=settings.steps, initial=start, unit="step", desc="train", smoothing=0.05)
    if settings.validate_every and start == 0:
        validate(state, 0)
    speed, pending = Throughput(), []
    for step in range(start + 1, settings.steps + 1):
        batch = put_batch(next(batches), mesh)
        if step == start + 1:
            began = time.perf_counter()
        state, metrics = step_fn(state, frozen, batch, rng)
        if step == start + 1:
            jax.block_until_ready(metrics)
            bar.write(f"compiled the train step and ran it once in {time.perf_counter() - began:.1f} s")
            speed = Throughput()
        pending.append(metrics)
        speed.add(next(iter(batch.values())).shape[0])
        bar.update()

        last = step == settings.steps
        if last or interrupted or step % settings.log_every == 0:
            scalars = _mean(pending)  # waits for the device
            pending.clear()
            check_finite(scalars, step)
            scalars["learning_rate"] = float(learning_rate(step - 1))
            scalars["images_per_second"] = speed.rate()
            writer.write(step, {f"train/{name}": value for name, value in scalars.items()})
            bar.set_postfix(loss=f"{scalars['loss']:.4f}", img_s=f"{scalars['images_per_second']:.1f}")
        if settings.validate_every and (last or step % settings.validate_every == 0):
            validate(state, step)
        if preview is not None and settings.preview_every and (last or step % settings.preview_every == 0):
            look(state, step)
        if last or interrupted or step % settings.checkpoint_every == 0:
            save(state, step)
        if interrupted:
            break
    bar.close()
    writer.close()
    checkpoints.close()
    if interrupted:
        log.warning("interrupted: step %d is saved; the same command goes on from there", int(state.step))
        raise KeyboardInterrupt
    return adaptation.apply(frozen, state.averaged)


def _count(tree: Params) -> int:
    return sum(int(np.prod(x.shape)) for x in tree.values())


def _mean(metrics: list[dict[str, jax.Array]]) -> dict[str, float]:
    fetched = jax.device_get(metrics)
    return {name: float(np.mean([m[name] for m in fetched])) for name in fetched[0]}


class _Interrupt:
    """True once the first Ctrl-C or SIGTERM came; the loop then saves and stops. A second one kills."""

    def __init__(self) -> None:
        self._seen = False
        self._previous = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        except ValueError:  # not the main thread (a notebook's worker): signals stay as they are
            pass

    def _handle(self, number: int, frame: Any) -> None:
        self._seen = True
        for which, previous in self._previous.items():
            signal.signal(which, previous)

    def __bool__(self) -> bool:
        return self._seen
