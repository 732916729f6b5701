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
    settings = config.evaluation
    if not settings.every_steps:
        return
    if config.task != "diffusion":
        raise UserError(f"evaluation.every_steps = {settings.every_steps} needs task = 'diffusion'")
    if not settings.metrics:
        raise UserError(f"evaluation.metrics is empty: name some of {', '.join(EVALUATORS)}")
    scalars = scalars_of(settings.metrics)
    if settings.keep_best is not None and settings.keep_best not in scalars:
        raise UserError(
            f"evaluation.keep_best = {settings.keep_best!r} is not among the scalars of "
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
    settings = config.evaluation
    if not settings.every_steps:
        return None
    model = replace(model, params={})
    shared = SharedByMetrics(
        config, dataset.validation, mesh, make_sample(config, model, mesh, settings)
    )
    scalars = scalars_of(settings.metrics)
    evaluators = [made(shared, names) for made, names in by_class(scalars).items()]
    best = None
    if settings.keep_best is not None:
        larger_is_better = scalars[settings.keep_best].scalars[settings.keep_best]
        best = _make_best(config, model, workdir, larger_is_better)

    def evaluation(params: Params, step: int, validation_loss: float | None) -> Metrics:
        shared.next_weights(validation_loss)
        result = {n: float(x) for evaluator in evaluators for n, x in evaluator(params, step)}
        shared.next_weights(None)
        if result.keys() != scalars.keys():
            raise UserError(
                f"evaluation.metrics gave {', '.join(result)} at step {step}, but their classes "
                f"name the scalars {', '.join(scalars)}"
            )
        result = {name: result[name] for name in scalars}
        if best is not None:
            best(params, step, result)
        return result

    return evaluation


def _make_best(
    config: ConfigDict, model: StableDiffusion, workdir: Path, larger_is_better: bool
) -> KeepBest:
    settings = config.evaluation
    # All that the values depend on besides the weights and the data.
    compared = {key: settings[key] for key in settings if key not in _WHAT_AND_WHEN}
    compared |= {f"validation.{key}": config.validation[key] for key in ("num_images", "seed")}
    return KeepBest(
        workdir,
        metric=settings.keep_best,
        larger_is_better=larger_is_better,
        settings=compared,
        resumed=has_checkpoint(workdir),
        save=lambda params, folder: save(replace(model, params=params), folder),
    )
