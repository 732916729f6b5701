"""A whole training run of a linear regression: everything of the loop, nothing of the models."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from medsd_jax.adaptation.adaptation import frozen_params
from medsd_jax.adaptation.full import full
from medsd_jax.parallel.mesh import make_mesh
from medsd_jax.training.accumulation import accumulated_grad
from medsd_jax.training.loop import LoopSettings, run_loop
from medsd_jax.training.state import apply_gradients

WIDTH = 8


def toy_params() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"head.conv.kernel": (WIDTH, WIDTH), "head.bias": (WIDTH,), "body.kernel": (4, WIDTH)}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


class ToyBatches:
    """Batch i depends on i alone; counts the batches handed out."""

    def __init__(self):
        self.position = 0
        self.on_batch = lambda position: None

    def __next__(self):
        self.position += 1
        self.on_batch(self.position)
        rng = np.random.default_rng(self.position)
        return {"x": rng.standard_normal((8, 4), np.float32)}

    def get_state(self) -> bytes:
        return json.dumps({"position": self.position}).encode()

    def set_state(self, state: bytes) -> None:
        self.position = json.loads(state)["position"]


def output(params, x):
    return (
        jnp.tanh(x @ params["body.kernel"]) @ params["head.conv.kernel"] + params["head.bias"][None]
    )


class ToyRun:
    """Call it to run: new objects each time, as in a new process."""

    def __init__(self, workdir: Path):
        self.workdir = workdir
        workdir.mkdir(exist_ok=True)
        self.validation = [
            {"x": np.full((8, 4), i, np.float32), "mask": np.arange(8, dtype=np.float32) % 2}
            for i in range(2)
        ]

    def __call__(
        self,
        steps=6,
        *,
        mesh=None,
        ema=0.9,
        patterns=(r"^head\.",),
        params=None,
        on_batch=lambda position: None,
        preview=None,
        evaluation=None,
        learning_rate=1e-2,
        poison=None,
        **settings,
    ):
        tx = optax.adam(learning_rate)
        adaptation = full(patterns)

        def train_step(state, frozen, batch, rng):
            noise = jax.random.normal(jax.random.fold_in(rng, state.step), batch["x"].shape)

            def loss_fn(trainable, x):
                y = output(adaptation.apply(frozen, trainable), x)
                return jnp.mean(jnp.square(y - 1.0)), {}

            scalars, grads = accumulated_grad(loss_fn, state.trainable, batch["x"] + noise, 1)
            if poison is not None:
                bad = jnp.where(state.step + 1 >= poison, jnp.nan, 0.0)
                grads = jax.tree.map(lambda g: g + bad, grads)
            state, norms = apply_gradients(state, grads, tx, ema_decay=ema)
            return state, {**scalars, **norms}

        def eval_step(trainable, frozen, batch, rng, first_row):
            y = output(adaptation.apply(frozen, trainable), batch["x"])
            rows = first_row + jnp.arange(8)  # so that a wrong count of rows shows
            losses = jnp.mean(jnp.square(y - 1.0), axis=1) + rows
            return jnp.sum(losses * batch["mask"]), jnp.sum(batch["mask"])

        self.batches = ToyBatches()
        self.batches.on_batch = on_batch
        defaults = {
            "steps": steps,
            "seed": 0,
            "ema": ema > 0,
            "log_every": 1,
            "checkpoint_every": 100,
            "keep_checkpoints": 2,
            "validate_every": 3,
            "validation_seed": 1,
            "preview_every": 4,
            "evaluate_every": 2,
        }
        params = toy_params() if params is None else params
        trained = run_loop(
            self.workdir,
            LoopSettings(**{**defaults, **settings}),
            mesh=mesh or make_mesh({"data": 4, "fsdp": 2}),
            params=params,
            adaptation=adaptation,
            tx=tx,
            learning_rate=optax.constant_schedule(learning_rate),
            train_step=train_step,
            eval_step=eval_step,
            batches=self.batches,
            validation=self.validation,
            preview=preview,
            evaluation=evaluation,
            config={"optim": {"learning_rate": learning_rate}, "patterns": patterns},
        )
        return adaptation.apply(frozen_params(params, trained), trained)
