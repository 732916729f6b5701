"""The training loop, top to bottom: shapes, state, restore, compile, loop.

Data, previews, metrics and the final export arrive as functions, so that this file is about
training alone.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterable
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
from medsd_jax.files import write_json
from medsd_jax.interrupts import AgreedStop, Interrupt, stop_if_asked
from medsd_jax.parallel.mesh import put_batch, replicated
from medsd_jax.parallel.multihost import is_main_process, put_global, replicated_key
from medsd_jax.parallel.sharding import bytes_per_device
from medsd_jax.parallel.vote import Vote
from medsd_jax.training.checkpoint import Checkpoints, changed_keys, plain
from medsd_jax.training.metrics import ScalarWriter, Throughput, check_finite
from medsd_jax.training.sharded_step import shard_step
from medsd_jax.training.state import init_state

log = logging.getLogger(__name__)

_STEPS_AHEAD = 2
"""Steps that may wait on the device. More would hold their batches there and delay an interrupt."""


class BatchIterator(Protocol):
    """A checkpointable stream of host batches."""

    def __next__(self) -> dict[str, np.ndarray]:
        """The next batch of this process."""

    def get_state(self) -> bytes:
        """The position after the last batch; the same in all processes."""

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
        validate_every: validation loss (and at step 0, with every evaluation and at the end).
        validation_seed: of its fixed noise.
        preview_every: sample images (and at the end).
        evaluate_every: metrics of sampled images (and at the end).
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
    evaluate_every: int


def run_loop(
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
    validation: Iterable[dict[str, np.ndarray]] | None,
    preview: Callable[[Params, int], None] | None,
    evaluation: Callable[[Params, int, float | None], dict[str, float]] | None,
    config: dict[str, Any],
) -> Params:
    """Trains; returns the adaptation's parameters after the last step, averaged if it averages.

    Args:
        workdir: checkpoints/, config.json, parameters.json, metrics.jsonl and tensorboard/ go here;
            a checkpoint found here is resumed.
        settings: lengths and intervals.
        mesh: device mesh.
        params: the model's weights, on the host; not written to.
        adaptation: which parameters are trained.
        tx: optimizer.
        learning_rate: for the log.
        train_step: ``(state, frozen, batch, rng) -> (state, metrics)``.
        eval_step: ``(trainable, frozen, batch, rng, first_row) -> (sum of losses, examples)``.
        batches: training batches, this process's rows.
        validation: the fixed validation batches; each iteration starts from the first.
        preview: ``(params, step)``, writes sample images.
        evaluation: ``(params, step, validation loss) -> metrics``; the loss is None where there is
            no validation.
        config: the run's config as plain values, kept in the checkpoints.

    Raises:
        DivergedError: the loss or a norm is not finite.
        KeyboardInterrupt: Ctrl-C or SIGTERM came, to any process; all save at the same step.
        UserError: the workdir's checkpoint is of another model, adaptation, optimizer or data.
    """
    stop_if_asked()
    # -- Shapes and places first: no array exists on a device yet --------------------------------
    trainable = adaptation.init(params, jax.random.key(settings.seed + 1))
    frozen = frozen_params(params, trainable)
    make_state = lambda trainable: init_state(trainable, tx, ema=settings.ema)  # noqa: E731
    shapes = jax.eval_shape(make_state, trainable)
    sharded = shard_step(train_step, shapes, frozen, mesh)
    num_trained, num_frozen = _count(trainable), _count(frozen)
    log.info(
        "training %s of %s weights; a device holds %.2f GiB of state and %.2f GiB of frozen "
        "weights; mesh %s",
        f"{num_trained:,}",
        f"{num_trained + num_frozen:,}",
        bytes_per_device(shapes, sharded.state) / 2**30,
        bytes_per_device(frozen, sharded.frozen) / 2**30,
        dict(mesh.shape),
    )

    with contextlib.ExitStack() as at_end:
        # -- State: the newest checkpoint if there is one, else step 0 ---------------------------
        checkpoints = Checkpoints(workdir, keep=settings.keep_checkpoints)
        at_end.callback(checkpoints.close)
        resumed = checkpoints.latest_step is not None
        if resumed:
            like = jax.tree.map(
                lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
                shapes,
                sharded.state,
            )
            restored = checkpoints.restore(like)
            state, pending = restored.state, restored.pending
            batches.set_state(restored.data)
            for key, (old, new) in changed_keys(restored.config, plain(config)).items():
                log.warning("resumed with another %s: %r, before %r", key, new, old)
            log.info("resumed %s at step %d", workdir, int(state.step))
            del restored  # the state is donated to the first step
        else:
            pending = []
            # Donated, so that the weights are not on the devices twice.
            state = jax.jit(make_state, out_shardings=sharded.state, donate_argnums=0)(
                put_global(trainable, sharded.state.trainable)
            )
        frozen = put_global(frozen, sharded.frozen)
        rng = replicated_key(settings.seed, mesh)
        del params, trainable  # stale from the first step on
        start = int(state.step)
        if start >= settings.steps:
            log.info("step %d of %d is done already", start, settings.steps)
        if is_main_process():
            write_json(workdir / "config.json", config)
            parameters = {"trained": num_trained, "frozen": num_frozen}
            write_json(workdir / "parameters.json", parameters)

        # -- What the loop calls -----------------------------------------------------------------
        eval_fn = jax.jit(eval_step, out_shardings=replicated(mesh))
        writer = ScalarWriter(
            workdir, keep_through=start if resumed else None, enabled=is_main_process()
        )
        at_end.callback(writer.close)
        bar = at_end.enter_context(
            tqdm(total=settings.steps, initial=start, unit="step", desc="train", smoothing=0.05)
        )

        def validate(step: int) -> float:
            total, count, first_row = 0.0, 0.0, 0
            for batch in validation:
                batch = put_batch(batch, mesh)
                # A new key each time: a key is used up once only, also where it never changes.
                rng = replicated_key(settings.validation_seed, mesh)
                losses, examples = eval_fn(state.averaged, frozen, batch, rng, np.int32(first_row))
                total, count = total + float(losses), count + float(examples)
                first_row += batch["mask"].shape[0]
            writer.write(step, {"validation/loss": total / count})
            bar.write(f"step {step}: validation loss {total / count:.5f}")
            return total / count

        # -- Loop --------------------------------------------------------------------------------
        if validation is not None and settings.validate_every and start == 0:
            validate(0)
        interrupted = at_end.enter_context(Interrupt())
        speed, stop, interrupt, save = Throughput(), False, False, False
        vote = Vote(mesh, steps_behind=_STEPS_AHEAD)
        for step in range(start + 1, settings.steps + 1):
            batch = put_batch(next(batches), mesh)
            began = time.perf_counter()
            state, metrics = sharded.step(state, frozen, batch, rng)
            pending.append(metrics)
            if step == start + 1:
                jax.block_until_ready(metrics)
                seconds = time.perf_counter() - began
                bar.write(f"compiled the train step and ran it once in {seconds:.1f} s")
                speed = Throughput()  # which does not count this step
            else:
                speed.add(next(iter(batch.values())).shape[0])
            if len(pending) > _STEPS_AHEAD:
                jax.block_until_ready(pending[-1 - _STEPS_AHEAD])
            bar.update()

            last = step == settings.steps
            interrupt = vote.now(bool(interrupted)) if last else vote(bool(interrupted))
            stop = interrupt and not last
            due = lambda every: bool(every) and (last or step % every == 0)  # noqa: B023, E731
            save = interrupt or due(settings.checkpoint_every)
            logged = due(settings.log_every)
            if save or logged:
                pending = _fetched(pending)  # waits for the device
                scalars = _mean(pending)
                check_finite(scalars, step)  # what is saved has been checked
            if logged:
                pending = []
                rate = speed.rate()
                scalars["learning_rate"] = float(learning_rate(step - 1))
                if rate:  # after the first step alone there is none
                    scalars["images_per_second"] = rate
                writer.write(step, {f"train/{name}": value for name, value in scalars.items()})
                bar.set_postfix(loss=f"{scalars['loss']:.4f}", images_s=f"{rate:.1f}")
            with speed.paused():
                measured = evaluation is not None and not stop and due(settings.evaluate_every)
                loss = None
                if (
                    validation is not None
                    and not stop
                    and (measured or due(settings.validate_every))
                ):
                    loss = validate(step)
                if preview is not None and not stop and due(settings.preview_every):
                    preview(adaptation.apply(frozen, state.averaged), step)
                if measured:
                    result = evaluation(adaptation.apply(frozen, state.averaged), step, loss)
                    writer.write(step, {f"evaluation/{name}": x for name, x in result.items()})
                    text = ", ".join(f"{name} {x:.5g}" for name, x in result.items())
                    bar.write(f"step {step}: {text}")
                if save:
                    checkpoints.save(
                        step, state, data=batches.get_state(), config=config, pending=pending
                    )
            if stop:
                break
        # What came during the last step's evaluation: the model can be written by the next run.
        interrupt = interrupt or (save and vote.now(bool(interrupted)))
    if interrupt:
        log.warning("step %d is saved; the same command goes on from there", step)
        raise AgreedStop
    return state.averaged


def _count(tree: Params) -> int:
    return sum(int(np.prod(x.shape)) for x in tree.values())


def _fetched(metrics: list[dict[str, jax.Array | float]]) -> list[dict[str, float]]:
    return [{name: float(x) for name, x in row.items()} for row in jax.device_get(metrics)]


def _mean(metrics: list[dict[str, float]]) -> dict[str, float]:
    # In float32, as they were computed: a mean that was interrupted is the same to the bit.
    names = metrics[0]
    return {name: float(np.mean(np.float32([row[name] for row in metrics]))) for name in names}
