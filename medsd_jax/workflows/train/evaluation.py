"""Metrics while training: what the config asks for becomes one function for the loop."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from jax.sharding import Mesh
from ml_collections import ConfigDict

from medsd_jax.arrays import Params
from medsd_jax.data.dataset import Dataset
from medsd_jax.errors import UserError
from medsd_jax.models.stable_diffusion import StableDiffusion
from medsd_jax.training.best import KeepBest
from medsd_jax.training.checkpoint import has_checkpoint
from medsd_jax.workflows.models import save
from medsd_jax.workflows.train.evaluators.evaluator import SharedByMetrics
from medsd_jax.workflows.train.evaluators.registry import EVALUATORS, by_class, scalars_of
from medsd_jax.workflows.train.preview import make_sample

Metrics = dict[str, float]

_WHAT_AND_WHEN = ("every_steps", "metrics", "keep_best")
"""Keys of `evaluation` that say nothing of how a value is measured."""


def check_evaluation(config: ConfigDict) -> None:
    """Raises UserError where `evaluation` contradicts itself."""
    asked = config.evaluation
    if not asked.every_steps:
        return
    if config.task != "diffusion":
        raise UserError(f"evaluation.every_steps = {asked.every_steps} needs task = 'diffusion'")
    if not asked.metrics:
        raise UserError(f"evaluation.metrics is empty: name some of {', '.join(EVALUATORS)}")
    scalars = scalars_of(asked.metrics)
    if asked.keep_best is not None and asked.keep_best not in scalars:
        raise UserError(
            f"evaluation.keep_best = {asked.keep_best!r} is not among the scalars of "
            f"evaluation.metrics, {', '.join(scalars)}: add it there"
        )
    for made, names in by_class(scalars).items():
        made.check(config, names)


def make_evaluation(
    config: ConfigDict, model: StableDiffusion, dataset: Dataset, mesh: Mesh, workdir: Path
) -> Callable[[Params, int, float | None], Metrics] | None:
    """Returns ``evaluation(params, step, validation loss) -> metrics``.

    None where the config asks for none. All processes call it, and all of them know the result; the
    main one writes the best weights into WORKDIR/best.

    Args:
        config: checked by `check_evaluation`.
        model: its shapes and tokenizer; the weights come with each call.
        dataset: its validation split is what the metrics may compare with.
        mesh: the devices.
        workdir: of the run.

    Raises:
        UserError: a network cannot be read or does not fit, or the split has too few images.
    """
    asked = config.evaluation
    if not asked.every_steps:
        return None
    model = replace(model, params={})
    shared = SharedByMetrics(
        config, dataset.validation, mesh, make_sample(config, model, mesh, asked)
    )
    scalars = scalars_of(asked.metrics)
    evaluators = [made(shared, names) for made, names in by_class(scalars).items()]
    best = None
    if asked.keep_best is not None:
        larger_is_better = scalars[asked.keep_best].scalars[asked.keep_best]
        best = _make_best(config, model, workdir, larger_is_better)

    def evaluation(params: Params, step: int, validation_loss: float | None) -> Metrics:
        shared.next_weights(validation_loss)
        found = {n: float(x) for evaluator in evaluators for n, x in evaluator(params, step)}
        shared.next_weights(None)
        if found.keys() != scalars.keys():
            raise UserError(
                f"evaluation.metrics gave {', '.join(found)} at step {step}, but their classes "
                f"name the scalars {', '.join(scalars)}"
            )
        found = {name: found[name] for name in scalars}
        if best is not None:
            best(params, step, found)
        return found

    return evaluation


def _make_best(
    config: ConfigDict, model: StableDiffusion, workdir: Path, larger_is_better: bool
) -> KeepBest:
    asked = config.evaluation
    # All that the values depend on besides the weights and the data.
    settings = {key: asked[key] for key in asked if key not in _WHAT_AND_WHEN}
    settings |= {f"validation.{key}": config.validation[key] for key in ("num_images", "seed")}
    return KeepBest(
        workdir,
        metric=asked.keep_best,
        larger_is_better=larger_is_better,
        settings=settings,
        resumed=has_checkpoint(workdir),
        save=lambda params, folder: save(replace(model, params=params), folder),
    )
