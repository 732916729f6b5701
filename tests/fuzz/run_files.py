"""Readers of what our own commands left, and somebody may have changed since."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from medsd_jax.cli.flags import parse_train_flags
from medsd_jax.config import training_config
from medsd_jax.data.dataset import open_dataset
from medsd_jax.data.loader import Source, make_loader
from medsd_jax.data.prompt_batches import PromptBatches
from medsd_jax.files import read_object
from medsd_jax.studies.chambon2022 import parts, run
from medsd_jax.studies.chambon2022 import report as reproduce_report
from medsd_jax.studies.chambon2022.experiments import EXPERIMENTS, Materials, Study
from medsd_jax.training.best import KeepBest
from medsd_jax.training.checksums import CHECKSUMS, find_damage, write_checksums
from medsd_jax.training.metrics import ScalarWriter, read_scalars
from medsd_jax.workflows.membership import config_of_run
from medsd_jax.workflows.sample_folder import SampleFolder
from tests.fuzz.mutations import Mutator, dumped, encoded
from tests.tiny import reports as examples

Read = Callable[[Mutator], Any]
PHANTOMS = {"num_images": 12, "image_size": 16}


def _phantoms(work: Path):
    return open_dataset(
        "phantom", params=PHANTOMS, cache_dir=work / "data", validation_fraction=0.25,
        progress=False,
    )  # fmt: skip


def _data_state(work: Path) -> Read:
    split = _phantoms(work).train
    batches = make_loader([Source(split, 2, {})], image_size=16, num_threads=0)
    next(batches)
    whole = json.loads(batches.get_state())

    def read(mutator: Mutator) -> None:
        batches.set_state(mutator.json(whole))
        assert len(next(batches)["images"]) == 2

    return read


def _prompt_state(work: Path) -> Read:
    batches = PromptBatches({"ids": np.arange(8)}, batch_size=2, seed=0)
    whole = json.loads(batches.get_state())

    def read(mutator: Mutator) -> None:
        batches.set_state(mutator.json(whole))
        assert len(next(batches)["ids"]) == 2

    return read


def _prepared_data(work: Path) -> Read:
    folder = _phantoms(work).info.folder
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    whole = {path: path.read_bytes() for path in files}

    def read(mutator: Mutator) -> None:
        path = mutator.rng.choice(files)
        try:
            path.write_bytes(mutator.bytes(whole[path]))
            dataset = _phantoms(work)
            for split in (dataset.train, dataset.validation):
                for i in range(len(split)):
                    split[i].read_bytes()
        finally:
            path.write_bytes(whole[path])

    return read


def _curves(work: Path) -> Read:
    rows = [{"step": i, "train/loss": 0.5, "images_per_second": 3.0} for i in range(3)]

    def read(mutator: Mutator) -> None:
        shutil.rmtree(work / "tensorboard", ignore_errors=True)
        (work / "metrics.jsonl").write_bytes(mutator.lines(rows))
        assert all(type(row["step"]) is int for row in read_scalars(work))
        ScalarWriter(work, keep_through=1).close()

    return read


def _checksums(work: Path) -> Read:
    for name in ("state/_METADATA", "run/metadata", "state/array"):
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).write_bytes(b"{}")
    write_checksums(work)
    whole = read_object(work / CHECKSUMS, "")

    def read(mutator: Mutator) -> None:
        (work / CHECKSUMS).write_bytes(mutator.json(whole))
        find_damage(work)

    return read


def _best(work: Path) -> Read:
    (work / "best").mkdir()
    whole = {"metric": "loss", "value": 0.5, "step": 3, "metrics": {"loss": 0.5}, "settings": {}}

    def read(mutator: Mutator) -> None:
        (work / "best/best.json").write_bytes(mutator.json(whole))
        KeepBest(
            work, metric="loss", larger_is_better=False, settings={}, resumed=True,
            save=lambda weights, folder: None,
        )  # fmt: skip

    return read


def _run_config(work: Path) -> Read:
    config = training_config()
    config.model.path = "m"
    whole = json.loads(config.to_json())

    def read(mutator: Mutator) -> None:
        (work / "config.json").write_bytes(mutator.json(whole))
        config_of_run(work)

    return read


OVERRIDES = (
    "train.steps=3", "optim.learning_rate=1e-4", "data.source=folder", "seed=1",
    "preview.prompts=('a', 'b')", "mesh.data=-1", "train.ema_decay=0.5", "data.flip=True",
)  # fmt: skip


def _overrides(work: Path) -> Read:
    recipe = [
        "--config",
        "configs/finetune.py",
        "--workdir",
        str(work / "run"),
        "--config.model.path=m",
    ]

    def read(mutator: Mutator) -> None:
        words = [mutator.rng.choice(OVERRIDES) for _ in range(2)]
        changed = mutator.bytes(" ".join(words).encode()).decode("utf-8", "surrogateescape")
        flags = [f"--config.{word}" for word in changed.replace("\0", "").split(" ")]
        parse_train_flags([*recipe, *flags])

    return read


def _samples_begun(work: Path) -> Read:
    entries = [{"prompt": f"p{i}", "seed": i, "row": {"id": f"a{i}"}, "lora": []} for i in range(3)]
    names = [f"{i:05d}.png" for i in range(3)]
    rows = [{"file": name, **entry} for name, entry in zip(names, entries, strict=True)]

    def read(mutator: Mutator) -> None:
        for name in names:
            (work / name).write_bytes(encoded())
        (work / "samples.jsonl").write_bytes(mutator.lines(rows))
        with SampleFolder(work, "files", entries) as result:
            assert 0 <= result.done <= 3

    return read


def _reports(work: Path) -> Read:
    """What `reproduce` takes from the reports of the commands that it ran."""
    evaluation, autoencoder = work / "row/evaluation", work / parts.AUTOENCODER
    (evaluation / "samples").mkdir(parents=True)
    autoencoder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
    from medsd_jax.sampling.images import save_png

    for i, image in enumerate(pixels):
        save_png(image, evaluation / f"samples/{i}.png", {})
    rows = [{"file": f"{i}.png", "prompt": "x"} for i in range(8)]
    whole = {
        evaluation / "report.json": examples.evaluation(reproduce_report.LABEL, "latent"),
        autoencoder / "report.json": examples.reconstruction(reproduce_report.LABEL),
        work / "row/parameters.json": {"trained": 5},
        work / "row/seconds.json": 3.5,
        evaluation / "samples/samples.jsonl": rows,
    }
    row = next(x for x in EXPERIMENTS if x.recipe is not None)
    materials = Materials(base="m", features=("latent",), real="", classifier=None, encoder=None)
    study = Study("phantom", work)

    def read(mutator: Mutator) -> None:
        for path, value in whole.items():
            path.write_bytes(
                b"".join(dumped(x) + b"\n" for x in value) if value is rows else dumped(value)
            )
        path = mutator.rng.choice(list(whole))
        value = whole[path]
        path.write_bytes(mutator.lines(value) if value is rows else mutator.json(value))
        reproduce_report.training(work, work / "row", row, materials, seed=0, model="m")
        parts.measure_autoencoder(study, materials)

    return read


def _settings(work: Path) -> Read:
    study = Study("phantom", work / "o", train_steps=3)
    run.keep_settings(study)
    whole = read_object(work / "o/settings.json", "")

    def read(mutator: Mutator) -> None:
        (work / "o/settings.json").write_bytes(mutator.json(whole))
        run.keep_settings(study)

    return read


TARGETS = {
    "data_state": _data_state,
    "prompt_state": _prompt_state,
    "prepared_data": _prepared_data,
    "curves": _curves,
    "checksums": _checksums,
    "best": _best,
    "run_config": _run_config,
    "overrides": _overrides,
    "samples_begun": _samples_begun,
    "reports": _reports,
    "settings": _settings,
}
