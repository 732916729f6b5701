"""Every adaptation of the papers on the same data, in one table.

Each row is trained by its recipe in configs/, samples the paper's two prompts and is measured by
``evaluate``. What is finished is kept, so the same command goes on after a break.
"""

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING

from medsd_jax.errors import UserError
from medsd_jax.files import read_object, write_json
from medsd_jax.folders import contents
from medsd_jax.studies.chambon2022.experiments import (
    BASE,
    EVALUATION,
    EXPERIMENTS,
    Experiment,
    Materials,
    Study,
    prompts_of,
    recipe_of,
    sampling_of,
    timed,
)
from medsd_jax.workflows.sample_for_evaluation import Sampling, check_config
from medsd_jax.workflows.workdir import working_in

if TYPE_CHECKING:
    from medsd_jax.evaluation.reports.studies import AdaptationTraining

_FULL_ONLY = ("model", "source", "path", "prompts", "encoder", "real", "classifier", "features")
_NEEDED = ("model", "source", "encoder", "real", "classifier", "features")


def reproduce(study: Study) -> None:
    """Trains and measures every row, and writes results.json and results.html.

    Raises:
        UserError: the settings do not go together, or OUTPUT was begun with others.
    """
    check_study(study)
    with working_in(study.output, "a reproduction"):
        keep_settings(study)
        _compare(study)


def _compare(study: Study) -> None:
    from medsd_jax.studies.chambon2022 import report
    from medsd_jax.studies.chambon2022.materials import make_materials
    from medsd_jax.studies.chambon2022.parts import measure_autoencoder, probe_text_encoders

    if study.scale == "phantom":
        materials = make_materials(study)
    else:
        materials = Materials(
            study.model, study.encoder, study.real, study.classifier, tuple(study.features)
        )
    rows = []
    autoencoder = measure_autoencoder(study, materials)
    for number, experiment in enumerate(EXPERIMENTS, start=1):
        print(f"[reproduce] {number} of {len(EXPERIMENTS)}: {experiment.title}", flush=True)
        if trainings := trainings_of(study, experiment, materials):
            rows.append(report.row(experiment, study.output, trainings))
            report.write(study, materials, rows, autoencoder, None)
    models = {entry.name: entry.trainings[0].model for entry in rows}
    text_encoders = probe_text_encoders(study, materials, models)
    report.write(study, materials, rows, autoencoder, text_encoders)
    print(report.in_words(rows))
    print(f"[reproduce] open {study.output / 'results.html'}; numbers: {study.output}/results.json")


def check_study(study: Study) -> None:
    """Raises UserError where the settings do not go together."""
    given = [name for name in _FULL_ONLY if getattr(study, name) is not None]
    if study.scale == "phantom" and given:
        raise UserError(f"{given[0]} is for scale full; phantoms bring everything along")
    if study.scale == "full":
        for name in _NEEDED:
            if getattr(study, name) is None:
                raise UserError(f"scale full needs {name}")
    check_config(sampling_of(study))


def keep_settings(study: Study) -> None:
    """Writes OUTPUT/settings.json: what is finished there is kept and must be of these settings.

    Raises:
        UserError: the folder was begun with others.
    """
    settings = {name: getattr(study, name) for name in ("scale", "train_steps", *_FULL_ONLY)}
    settings |= {k: x for k, x in sampling_of(study).to_dict().items() if k != "prompts"}
    settings = json.loads(json.dumps(settings, default=str))
    path = study.output / "settings.json"
    if path.exists():
        before = read_object(path, "name another output")
        for name, value in settings.items():
            if before.get(name) != value:
                raise UserError(
                    f"{study.output} was begun with {name} = {before.get(name)}, not {value}: "
                    "name another output"
                )
        return
    if contents(study.output):
        raise UserError(
            f"{study.output} is no comparison that can go on (it has no settings.json): name "
            "another output"
        )
    study.output.mkdir(parents=True, exist_ok=True)
    write_json(path, settings)


def trainings_of(
    study: Study, experiment: Experiment, materials: Materials
) -> list["AdaptationTraining"]:
    """Trains and measures one row with every seed that is asked for; adds what is finished already.

    Returns:
        One entry per training, as results.json holds it; empty for a row that is not asked for.
    """
    from medsd_jax.studies.chambon2022 import report

    chosen = not study.only or experiment.name in (*study.only, BASE)
    seeds = study.seeds if experiment.recipe else 1
    trainings = []
    for seed in itertools.count():
        folder = study.output / (f"{experiment.name}-{seed}" if seed else experiment.name)
        finished = (folder / EVALUATION / "report.json").exists()
        if not finished and not (chosen and seed < seeds):
            return trainings
        model = train_experiment(study, experiment, materials, folder, seed)
        if not finished:
            evaluate_experiment(study, experiment, materials, folder, model)
        trainings.append(
            report.training(study.output, folder, experiment, materials, seed=seed, model=model)
        )


def train_experiment(
    study: Study, experiment: Experiment, materials: Materials, workdir: Path, seed: int
) -> str:
    """Trains one row unless it is trained already.

    Args:
        study: the comparison.
        experiment: the row.
        materials: what it starts from.
        workdir: its folder.
        seed: added to the recipe's.

    Returns:
        The model, as `medsd_jax.load` takes it.
    """
    from medsd_jax.workflows.swap_text_encoder import write_swapped
    from medsd_jax.workflows.train.projection import train_projection
    from medsd_jax.workflows.train.run import train

    if experiment.recipe is None:
        return materials.base
    if (workdir / "model" / "model_index.json").exists():
        return str(workdir)
    config = recipe_of(study, experiment.recipe[study.scale])
    config.seed += seed
    config.model.path = materials.base
    with timed(workdir):
        if experiment.encoder == "projected":
            config.encoder.path = materials.encoder
            train_projection(config.lock(), workdir)
        else:
            if experiment.encoder == "swapped":
                swapped = workdir / "swapped"
                if not (swapped / "model_index.json").exists():
                    write_swapped(materials.base, materials.encoder, swapped)
                config.model.path = str(swapped)
                config.prior.path = materials.base
            train(config.lock(), workdir)
    return str(workdir)


def evaluate_experiment(
    study: Study, experiment: Experiment, materials: Materials, folder: Path, model: str
) -> None:
    """Samples and measures what one training led to."""
    from medsd_jax.reports.evaluation_summary import in_words
    from medsd_jax.workflows.evaluate import evaluate

    result = evaluate(
        materials.real,
        Sampling(model, prompts_of(study, experiment), sampling_of(study)),
        output=folder / EVALUATION,
        features=materials.features,
        classifier=materials.classifier,
    )
    print(in_words(result))
