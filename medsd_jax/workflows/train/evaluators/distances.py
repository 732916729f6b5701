"""FID, KID, precision and recall: sampled images against all images of the validation split."""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from medsd_jax.arrays import Params
from medsd_jax.data.transforms import load_image
from medsd_jax.errors import UserError
from medsd_jax.evaluation.features.extraction import make_extractor, open_network
from medsd_jax.evaluation.metrics.fidelity import NEIGHBOURS, distances
from medsd_jax.evaluation.metrics.frechet import moments_of
from medsd_jax.workflows.train.evaluators.evaluator import Evaluator, SharedByMetrics

_MIN_IMAGES = NEIGHBOURS + 1
_READ_AT_ONCE = 256


class Distances(Evaluator):
    """Images of captions spread over the split, in the space of `evaluation.features`."""

    scalars: ClassVar[dict[str, bool]] = {
        "fid": False,
        "kid": False,
        "precision": True,
        "recall": True,
    }

    @classmethod
    def check(cls, config: ConfigDict, names: tuple[str, ...]) -> None:
        """See `Evaluator`."""
        if config.evaluation.features is None:
            raise UserError(
                f"evaluation.metrics: {names[0]!r} needs evaluation.features, such as "
                "classifier=FOLDER"
            )
        if config.evaluation.num_images < _MIN_IMAGES:
            raise UserError(
                f"evaluation.num_images = {config.evaluation.num_images} must be at least "
                f"{_MIN_IMAGES} for {names[0]!r}"
            )

    def __init__(self, run: SharedByMetrics, names: tuple[str, ...]):
        super().__init__(run, names)
        network, split, data = (
            open_network(run.config.evaluation.features),
            run.validation,
            run.config.data,
        )
        count = len(split)
        if count < _MIN_IMAGES:
            raise UserError(
                f"the {split.name} split has {count} images, but {names[0]!r} compares with at "
                f"least {_MIN_IMAGES}: raise data.validation_fraction"
            )
        most = max(run.config.evaluation.num_images, min(count, _READ_AT_ONCE))
        self._extract = make_extractor(network, run.mesh, most)
        result = []
        for start in tqdm(range(0, count, most), desc="features of the validation split"):
            records = (split[row] for row in range(start, min(start + most, count)))
            result.append(
                self._extract(
                    [load_image(x.read_bytes(), data.image_size, data.resize_mode) for x in records]
                )
            )
        self._real = np.concatenate(result)
        self._moments = moments_of(self._real, "real")

    def __call__(self, params: Params, step: int) -> Iterator[tuple[str, float]]:
        """See `Evaluator`."""
        drawn = self._extract(self.run.sample(params, self.run.captions()))
        patients = self.run.validation.patient_ids
        yield from distances(self._real, self._moments, drawn, self.names, patients).items()
