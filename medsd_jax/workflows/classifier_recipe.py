"""A classifier's recipe at work: who trains, calibrates and tests, and the training itself.

train-classifier and downstream-utility are made of it. Here the config ends.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import optax
import scipy.special
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from medsd_jax.classifier.calibration import calibrate
from medsd_jax.classifier.init import Start, from_classifier, from_published, from_scratch
from medsd_jax.classifier.model import Classifier, predict_logits
from medsd_jax.classifier.training import Augmentation, fit
from medsd_jax.data.labels import NotAFinding, find_label, finding
from medsd_jax.data.loader import Source, eval_batches, make_loader
from medsd_jax.data.patient_split import first_patients
from medsd_jax.data.records import Split
from medsd_jax.data.tfds_builder import RecordSplit
from medsd_jax.errors import UserError
from medsd_jax.parallel.mesh import check_batch, make_mesh, process_rows
from medsd_jax.parallel.multihost import is_main_process
from medsd_jax.training.metrics import ScalarWriter, check_finite
from medsd_jax.training.optim import make_optimizer, make_schedule
from medsd_jax.vision.densenet import DenseNetConfig
from medsd_jax.workflows.train.data import open_data


@dataclasses.dataclass(frozen=True)
class RealImages:
    """Three splits of real images; no patient is in two of them."""

    train: RecordSplit
    calibration: RecordSplit
    held_out: RecordSplit


@dataclasses.dataclass(frozen=True)
class Labelled:
    """Images in memory, to calibrate or test with.

    Attributes:
        images_u8: [n, H, W] grey.
        targets: [n, labels], see `targets_of`.
        patient_ids: [n].
    """

    images_u8: np.ndarray
    targets: np.ndarray
    patient_ids: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class TrainingStage:
    """Optimizer steps on the images of one split.

    Attributes:
        images: the split.
        steps: at least 1.
        learning_rate: the largest of optim.schedule, which starts with this stage.
    """

    images: Split
    steps: int
    learning_rate: float


def open_real_images(config: ConfigDict, workdir: Path) -> RealImages:
    """The data set's own held-out patients, and its training patients in two parts."""
    dataset = open_data(config, workdir)
    train = dataset.train
    chosen = np.array(first_patients(train.patient_ids, config.calibration_fraction))
    return RealImages(
        train.select(np.flatnonzero(~chosen).tolist(), "train_classifier"),
        train.select(np.flatnonzero(chosen).tolist(), "calibration"),
        dataset.validation,
    )


class ClassifierRecipe:
    """What a config says of the network and its training.

    Attributes:
        labels: the findings.
        mesh: the devices.
        start: the network before training.
    """

    def __init__(self, config: ConfigDict):
        self._config = config
        self.labels: tuple[str, ...] = tuple(config.labels)
        self.mesh: Mesh = make_mesh(config.mesh.to_dict())
        check_batch(config.data.batch_size, self.mesh)
        self.start: Start = _start(config)
        self._optimizers: dict[tuple[int, float], optax.GradientTransformation] = {}

    def train(
        self, stages: Sequence[TrainingStage], calibration: Labelled, *, seed: int, workdir: Path
    ) -> Classifier:
        """Trains stage by stage and calibrates.

        Args:
            stages: each goes on from the weights of the one before it.
            calibration: of patients that are in no stage.
            seed: of the initial weights, the order of the images and the augmentation.
            workdir: gets the curves; steps are counted through all stages.

        Raises:
            DivergedError: the loss or a norm is not finite.
        """
        config, params, done = self._config, self.start.params(seed), 0
        total = sum(stage.steps for stage in stages)
        workdir.mkdir(parents=True, exist_ok=True)
        writer = ScalarWriter(workdir, keep_through=None, enabled=is_main_process())
        with (
            contextlib.closing(writer),
            tqdm(total=total, desc=f"train {workdir.name}", unit="step") as bar,
        ):

            def note(step: int, metrics: dict[str, jax.Array]) -> None:
                bar.update()
                step += done
                if step % config.log.every_steps == 0 or step == total:
                    scalars = {f"train/{name}": float(x) for name, x in metrics.items()}
                    check_finite(scalars, step)
                    bar.set_postfix(loss=f"{scalars['train/loss']:.3f}")
                    writer.write(step, scalars)

            for stage in stages:
                source = Source(
                    stage.images, config.data.batch_size,
                    {"targets": targets_of(stage.images, self.labels)},
                )  # fmt: skip
                loader = make_loader(
                    [source], image_size=config.data.image_size,
                    resize_mode=config.data.resize_mode, seed=seed,
                    num_threads=config.data.num_workers,
                    rows=process_rows(self.mesh, config.data.batch_size),
                )  # fmt: skip
                with contextlib.closing(loader):
                    params = fit(
                        params, self.start.network, loader, self.optimizer(stage),
                        steps=stage.steps, augment=Augmentation(**config.augmentation.to_dict()),
                        seed=seed, mesh=self.mesh, on_step=note,
                    )  # fmt: skip
                done += stage.steps
        one = np.ones(len(self.labels), np.float32)
        classifier = Classifier(
            self.start.network, self.labels, config.data.image_size, config.data.resize_mode,
            params, one, 0 * one,
        )  # fmt: skip
        scores = predict_logits(classifier, calibration.images_u8, self.mesh)
        slope, intercept = calibrate(scores, calibration.targets)
        return dataclasses.replace(classifier, slope=slope, intercept=intercept)

    def probabilities(self, classifier: Classifier, images_u8: np.ndarray) -> np.ndarray:
        """Calibrated [n, labels] float64: in float32, unequal scores near 0 or 1 would be equal."""
        scores = predict_logits(classifier, images_u8, self.mesh).astype(np.float64)
        return scipy.special.expit(classifier.slope * scores + classifier.intercept)

    def optimizer(self, stage: TrainingStage) -> optax.GradientTransformation:
        """The same object for equal stages, so that they share a compiled step.

        Raises:
            UserError: the schedule does not fit the steps.
        """
        key, optim = (stage.steps, stage.learning_rate), self._config.optim
        if key not in self._optimizers:
            schedule = make_schedule(
                optim.schedule, stage.learning_rate, warmup_steps=optim.warmup_steps,
                total_steps=stage.steps,
            )  # fmt: skip
            settings = ("b1", "b2", "eps", "weight_decay", "clip_norm", "no_decay")
            self._optimizers[key] = make_optimizer(schedule, **{k: optim[k] for k in settings})
        return self._optimizers[key]

    def labelled(self, split: Split) -> Labelled:
        """A whole split in memory."""
        images = np.concatenate(list(self.grey_batches(split)))
        return Labelled(images, targets_of(split, self.labels), split.patient_ids)

    def grey_batches(self, split: Split) -> Iterator[np.ndarray]:
        """All images of a split, [b, H, W] uint8 at a time, as the classifier sees them."""
        config, left = self._config, len(split)
        batches = eval_batches(
            split, num_examples=None, batch_size=64, columns={},
            image_size=config.data.image_size, resize_mode=config.data.resize_mode,
        )  # fmt: skip
        for batch in batches:
            grey = np.rint(batch["images"].mean(-1, dtype=np.float32))
            yield grey[:left].astype(np.uint8)
            left -= len(grey)


def targets_of(split: Split, labels: Sequence[str]) -> np.ndarray:
    """Findings of a split -> [n, labels] float32: 1, 0, or NaN where it is not known.

    Raises:
        UserError: no record has the label, or a value cannot be read as data/labels.py says.
    """
    targets = np.full((len(split), len(labels)), np.nan, np.float32)
    for column, label in enumerate(labels):
        name = find_label(split.labels, label)
        if name is None:
            known = sorted({name for row in split.labels for name in row})
            raise UserError(
                f"no image of {split.name} has the label {label!r} (there are: "
                f"{', '.join(known) or 'none'})"
            )
        for row, values in enumerate(split.labels):
            try:
                value = finding(values.get(name))
            except NotAFinding as error:
                raise UserError(
                    f"label {label!r} of {split.keys[row]} is {values[name]!r}: write 1 or 0, and "
                    "-1 or nothing where it is not known"
                ) from error
            if value is not None:
                targets[row, column] = value
    return targets


def _start(config: ConfigDict) -> Start:
    network = DenseNetConfig(
        growth_rate=config.network.growth_rate,
        block_config=tuple(config.network.block_config),
        num_init_features=config.network.num_init_features,
        num_classes=len(config.labels),
        in_channels=1,
    )
    if config.network.weights is None:
        return from_scratch(network)
    path = Path(config.network.weights).expanduser()
    return (from_classifier if path.is_dir() else from_published)(path, network)
