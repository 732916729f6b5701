"""Can an image's denoising loss tell that the model was trained on it? Membership inference.

A model that memorises its training images denoises them better than those of other patients:

    (1)  l_k(x) = mean over draws n of |model(x_t, t, caption) - target|^2,   t = (k + 1/2) T / K
    (2)  score(x) = -mean_k l_k(x)                                          2301.13188, section 5
    (3)  AUROC = P(score(trained) > score(held out)), ties count half

The K times are the middles of equal parts of [0, T); latents are the posterior's mean. AUROC is 0.5
where nothing tells the two groups apart. An average hides the few images that are known for
certain (2112.03570, section 3), so the share of trained images that is found with one false alarm
in a hundred stands beside it, and how large it is by chance: 0.01 of many held-out patients, 0.05
of twenty, as alarm.py derives.

Both groups are images of one source, prepared alike. Where they differ otherwise (a scanner, a
year, the share of findings), the attack finds that difference and not memorisation. The same attack
on the model that the training started from shows how much of it there is: it saw neither side.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Shaped
from tqdm import tqdm

from medsd_jax.arrays import Params
from medsd_jax.errors import UserError
from medsd_jax.evaluation.by_classifier.label_scores import auroc
from medsd_jax.evaluation.memorization.alarm import alarm_at
from medsd_jax.evaluation.metrics.intervals import bootstrap_interval
from medsd_jax.evaluation.reports.membership import (
    Attack,
    GroupLoss,
    RateByChance,
    TimestepLosses,
    TruePositiveRate,
)
from medsd_jax.interrupts import stop_if_asked
from medsd_jax.parallel.mesh import batch_sharding, make_mesh, put_batch
from medsd_jax.parallel.multihost import fetch, put_global, replicated_key
from medsd_jax.parallel.sharding import tree_shardings
from medsd_jax.training.step import DiffusionModel, denoising_loss, encode_images, eval_draws

MAX_DRAWS = 100_000
"""Of an image: the losses of all of them lie on the device at once."""


@dataclass(frozen=True)
class Examples:
    """One group of the attack.

    Attributes:
        batches: {"images": [b, H, W, 3] uint8, or "latent_moments": [b, h, w, 2C]
            float32; "prompt_ids": [b, S] int32}: this process's rows of batches of one size, which
            the devices divide. Rows beyond the last example are padding; `eval_batches` gives such.
        patient_ids: [n], of each example.
    """

    batches: Iterable[Mapping[str, np.ndarray]]
    patient_ids: Sequence[str]


def membership(
    model: DiffusionModel,
    params: Mapping[str, Any],
    trained: Examples,
    held_out: Examples,
    *,
    num_timesteps: int = 10,
    num_draws: int = 4,
    seed: int = 0,
    num_resamples: int = 1000,
    mesh: Mesh | None = None,
) -> Attack:
    """Attacks a model by (1) to (3).

    Args:
        model: structure and noise schedule.
        params: all weights.
        trained: what the model was trained on, with the captions of its training.
        held_out: of patients that it was not trained on.
        num_timesteps: K.
        num_draws: of the noise at each time.
        seed: of noise and resamples.
        num_resamples: of the bootstrap.
        mesh: all devices by default.

    Returns:
        See `attack`.

    Raises:
        UserError: a patient is in both groups, or there are too few for an interval.
    """
    check_patients(trained.patient_ids, held_out.patient_ids)
    losses_of = make_denoising_losses(
        model, params, num_timesteps=num_timesteps, num_draws=num_draws, seed=seed, mesh=mesh
    )
    losses = (losses_of(x.batches)[: len(x.patient_ids)] for x in (trained, held_out))
    return attack(
        *losses, trained.patient_ids, held_out.patient_ids,
        timesteps=times(model, num_timesteps), seed=seed, num_resamples=num_resamples,
    )  # fmt: skip


def make_denoising_losses(
    model: DiffusionModel,
    params: Mapping[str, Any],
    *,
    num_timesteps: int,
    num_draws: int,
    seed: int,
    mesh: Mesh | None = None,
) -> Callable[[Iterable[Mapping[str, np.ndarray]]], np.ndarray]:
    """Returns ``losses_of(batches) -> [n, K] float32``, (1) of every row, padding included.

    The noise of row i depends on the seed, i, the time and the draw: not on the batch size, the
    devices or the other images.

    Args:
        model: structure and noise schedule.
        params: all weights.
        num_timesteps: K.
        num_draws: of the noise at each time.
        seed: of the noise.
        mesh: all devices by default.
    """
    if num_timesteps < 1 or num_draws < 1:
        raise UserError(
            f"{num_timesteps} timesteps and {num_draws} draws leave nothing to average; "
            "give at least 1 of each"
        )
    mesh = make_mesh({"data": -1}) if mesh is None else mesh
    most = model.schedule.num_train_timesteps
    if num_timesteps > most or num_timesteps * num_draws > MAX_DRAWS:
        raise UserError(
            f"{num_timesteps} timesteps with {num_draws} draws each: the model has {most} "
            f"timesteps, and more than {MAX_DRAWS} draws of an image are never needed"
        )
    fixed_times = times(model, num_timesteps)

    def of_batch(params: Params, batch: Mapping[str, jax.Array], rng: jax.Array, first: jax.Array):
        # Encoded once for all times and draws.
        moments = jnp.concatenate(encode_images(model, params, batch), axis=-1)
        known = {"latent_moments": moments, "prompt_ids": batch["prompt_ids"]}

        def at(time_and_number: tuple[jax.Array, jax.Array]) -> jax.Array:
            t, number = time_and_number
            draws = eval_draws(model, known, jax.random.fold_in(rng, number), first)
            draws = draws.replace(
                posterior=jnp.zeros_like(draws.posterior),
                timesteps=jnp.full_like(draws.timesteps, t),
            )
            return denoising_loss(
                model, params, known, draws,
                empty_prompt_ids=np.zeros(known["prompt_ids"].shape[1], np.int32),  # never used
                min_snr_gamma=None,
            )  # fmt: skip

        each = jnp.repeat(fixed_times, num_draws), jnp.arange(num_timesteps * num_draws)
        losses = jax.lax.map(at, each).reshape(num_timesteps, num_draws, -1)
        return losses.mean(axis=1).T

    run = jax.jit(of_batch, out_shardings=batch_sharding(mesh))
    params = put_global(dict(params), tree_shardings(params, mesh))

    def losses_of(batches: Iterable[Mapping[str, np.ndarray]]) -> np.ndarray:
        result, first = [], 0
        for host_batch in tqdm(batches, desc="denoising losses", unit="batch"):
            stop_if_asked()
            batch = put_batch({k: x for k, x in host_batch.items() if k != "mask"}, mesh)
            rng = replicated_key(seed, mesh)  # a new one each time: a key is used up once only
            result.append(fetch(run(params, batch, rng, np.int32(first))))
            if bad := int((~np.isfinite(result[-1]).all(axis=1)).sum()):
                raise UserError(
                    f"the denoising losses of {bad} of {len(result[-1])} images are not finite "
                    "(NaN or infinite): the model gives no usable numbers; take another copy of it"
                )
            first += len(result[-1])
        return np.concatenate(result)

    return losses_of


def times(model: DiffusionModel, num_timesteps: int) -> np.ndarray:
    """The times of (1): [K] int32 in [0, T)."""
    size = model.schedule.num_train_timesteps
    return ((np.arange(num_timesteps) + 0.5) * size / num_timesteps).astype(np.int32)


def attack(
    trained: Float[np.ndarray, "n K"],
    held_out: Float[np.ndarray, "m K"],
    trained_patients: Sequence[str],
    held_out_patients: Sequence[str],
    *,
    timesteps: Shaped[np.ndarray, " K"],
    seed: int = 0,
    num_resamples: int = 1000,
) -> Attack:
    """Scores the attack from the losses of both groups.

    Args:
        trained: (1) of images that the model was trained on.
        held_out: (1) of images of other patients.
        trained_patients: [n].
        held_out_patients: [m].
        timesteps: t of (1).
        seed: of the bootstrap over patients.
        num_resamples: of the bootstrap.

    Returns:
        AUROC (3) with n = patients of both groups; the share of trained images whose score is above
        all but floor(m / 100) of the held-out ones; that share by chance, each held-out patient
        taken in turn, with an interval for as many patients as were trained on; and both groups'
        losses by timestep: at which noise levels they differ.
    """
    check_patients(trained_patients, held_out_patients)
    assert len(trained) == len(trained_patients), (len(trained), len(trained_patients))
    assert len(held_out) == len(held_out_patients), (len(held_out), len(held_out_patients))
    losses = np.concatenate([trained, held_out]).astype(np.float64)
    is_trained = np.arange(len(losses)) < len(trained)
    score = -losses.mean(axis=1)
    interval = bootstrap_interval(
        auroc, is_trained, score, units=np.array([*trained_patients, *held_out_patients]),
        num_resamples=num_resamples, seed=seed,
    )  # fmt: skip
    groups = {"trained": (trained, trained_patients), "held_out": (held_out, held_out_patients)}
    rank = len(held_out) // 100 + 1
    alarm = alarm_at(-score[~is_trained], held_out_patients, rank)
    by_chance, *ends = alarm.by_chance(len(trained), num_units=len(set(trained_patients)))
    return Attack(
        auroc=interval,
        tpr_at_one_percent_fpr=TruePositiveRate(
            value=tpr_at_one_percent(is_trained, score), false_alarms=len(held_out) // 100
        ),
        tpr_by_chance=RateByChance(
            value=by_chance / len(trained), ci95=tuple(end / len(trained) for end in ends)
        ),
        timesteps=tuple(
            TimestepLosses(
                timestep=int(t),
                trained_loss=float(losses[is_trained, k].mean()),
                held_out_loss=float(losses[~is_trained, k].mean()),
                auroc=auroc(is_trained, -losses[:, k]),
            )
            for k, t in enumerate(timesteps)
        ),
        **{
            name: GroupLoss(
                num_images=len(group),
                num_patients=len(set(patients)),
                loss=float(group.mean(dtype=np.float64)),
            )
            for name, (group, patients) in groups.items()
        },
    )


def tpr_at_one_percent(
    is_trained: Shaped[np.ndarray, " n"], score: Shaped[np.ndarray, " n"]
) -> float:
    """Share of the trained images above all held-out ones but one in a hundred of these."""
    others = np.sort(score[~is_trained])[::-1]
    return float(np.mean(score[is_trained] > others[len(others) // 100]))


def check_patients(trained: Sequence[str], held_out: Sequence[str]) -> None:
    """Raises UserError where a patient is in both groups, or a group is empty."""
    if not trained or not held_out:
        raise UserError(
            f"{len(trained)} images that the model was trained on and {len(held_out)} of other "
            "patients: the attack needs both"
        )
    both = sorted(set(trained) & set(held_out))
    if both:
        raise UserError(
            f"{len(both)} patient(s), such as {both[0]!r}, are among those trained on and among "
            "those held out; compare different patients"
        )
