"""Readers of images and tables: what people bring to train on, to evaluate and to sample from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from medsd_jax.data.patient_split import assign_splits
from medsd_jax.data.prompt_batches import read_prompts
from medsd_jax.data.sources import folder, nih14
from medsd_jax.data.stored_image import read_pixels, to_stored
from medsd_jax.data.transforms import load_image
from medsd_jax.evaluation.images.export import chexpert_cell, numbered_ids, write_image_folders
from medsd_jax.evaluation.images.image_sets import open_images
from medsd_jax.evaluation.images.prompt_labels import (
    known_labels,
    labels_by_prompt,
    labels_or_words,
)
from medsd_jax.evaluation.images.tables import read_table
from medsd_jax.sampling.edits import read_edit
from medsd_jax.sampling.images import read_metadata, save_png
from medsd_jax.workflows.sample_to_folder import read_latents, read_requests
from tests.fuzz.mutations import Mutator, dumped, encoded

Read = Callable[[Mutator], Any]

IMAGES = (
    encoded(), encoded("RGB"), encoded("P"), encoded("RGBA"), encoded("LA"), encoded("1"),
    encoded("I;16"), encoded("L", "JPEG"), encoded("CMYK", "JPEG"), encoded("L", "BMP"),
    encoded("L", "TIFF"), encoded("I;16", "TIFF"), encoded("RGB", "TIFF", compression="tiff_lzw"),
    encoded("RGB", "WEBP"), encoded("RGB", "GIF"), encoded("L", "PPM"),
)  # fmt: skip


def _images(work: Path) -> Read:
    def read(mutator: Mutator) -> None:
        raw = mutator.image(mutator.rng.choice(IMAGES))
        pixels, note = read_pixels(raw)
        stored = to_stored(raw)
        assert stored.note or pixels.shape[:2] == (stored.height, stored.width), note
        load_image(stored.encoded, 16)

    return read


def _image_set(work: Path) -> Read:
    (work / "1.png").write_bytes(IMAGES[0])

    def read(mutator: Mutator) -> None:
        (work / "0.png").write_bytes(mutator.image(mutator.rng.choice(IMAGES)))
        result = open_images(work)
        assert [result.read(i).dtype for i in range(len(result))]

    return read


def _masks(work: Path) -> Read:
    (work / "image.png").write_bytes(IMAGES[0])
    mask = encoded("1")

    def read(mutator: Mutator) -> None:
        (work / "mask.png").write_bytes(mutator.image(mask))
        read_edit(work / "image.png", mask=work / "mask.png")

    return read


CAPTIONS = [
    ["file_name", "text", "patient_id", "split", "effusion", "age"],
    ["0.png", "Chest, X-ray.", "p0", "train", "1", "57"],
    ["1.png", "b", "p1", "validation", "0", "057Y"],
    ["2.png", 'c "d"', "p2", "", "nan", ""],
]
CAPTION_ROWS = [
    {"file_name": f"{i}.png", "text": "x", "patient_id": f"p{i}", "split": "train", "effusion": i}
    for i in range(2)
]


def _image_folder(suffix: str) -> Callable[[Path], Read]:
    def target(work: Path) -> Read:
        for i in range(3):
            (work / f"{i}.png").write_bytes(IMAGES[0])

        def read(mutator: Mutator) -> None:
            csv = suffix == ".csv"
            content = mutator.table(CAPTIONS) if csv else mutator.lines(CAPTION_ROWS)
            (work / f"metadata{suffix}").write_bytes(content)
            records = folder.load(work).records
            for record in records:
                assert Path(record.image).resolve().parent == work.resolve(), record.image
                record.read_bytes()
            assign_splits(records, 0.3)

        return read

    return target


NIH = [
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position",
    "0.png,Effusion|Mass,0,1,057Y,F,PA",
    "1.png,No Finding,1,2,30,M,AP",
]


def _nih(work: Path) -> Read:
    (work / "images").mkdir()
    for i in range(2):
        (work / f"images/{i}.png").write_bytes(IMAGES[0])

    def read(mutator: Mutator) -> None:
        (work / "labels.csv").write_bytes(mutator.table([row.split(",") for row in NIH]))
        nih14.load(work)

    return read


CHEXPERT = [
    ["Path", "Sex", "Age", "AP/PA", "Pleural Effusion", "Edema", "labels", "prompt"],
    ["CheXpert/train/patient00001/study1/0.png", "Female", "68", "AP", "1.0", "", "", "x"],
    ["CheXpert/train/patient00002/study1/0.png", "Male", "3", "", "-1.0", "0.0", "", "y"],
]
GENERATIONS = [
    ["id", "path", "prompt", "patient_id", "labels"],
    ["a", "0.png", "Small effusion.", "p", "{'Edema': 1.0, 'Pleural Effusion': 0}"],
    ["b", "1.png", "No finding.", "q", ""],
]
SAMPLES = [
    {
        "file": f"{i}.png", "prompt": "Large left pleural effusion.", "negative_prompt": "",
        "seed": i, "row": {"id": "a", "pleural_effusion": "1", "age": "57"},
    }
    for i in range(2)
]  # fmt: skip


def _tables(name: str, rows: list) -> Callable[[Path], Read]:
    def target(work: Path) -> Read:
        def read(mutator: Mutator) -> None:
            csv = name.endswith(".csv")
            (work / name).write_bytes(mutator.table(rows) if csv else mutator.lines(rows))
            result = read_table(work / name)
            texts = [row.text for row in result]
            labels = labels_or_words(texts, [row.labels for row in result])
            numbered_ids(name, [row.id for row in result], texts, [str(r.path) for r in result])
            assert all(isinstance(chexpert_cell(x), str) for x in labels)

        return read

    return target


def _export_images(work: Path) -> Read:
    for i in range(2):
        (work / f"{i}.png").write_bytes(IMAGES[0])

    def read(mutator: Mutator) -> None:
        (work / "t.csv").write_bytes(mutator.table(GENERATIONS))
        result = open_images(work / "t.csv")
        labels = known_labels(result)
        output = work / f"out{mutator.rng.random()}"
        write_image_folders(output, result, result, {"real": labels, "synthetic": labels})

    return read


PROMPTS = [
    ["prompt", "negative_prompt", "seed", "id", "pleural_effusion"],
    ["x", "", "3", "a", "1"],
    ["y, z", "n", "", "b", "0"],
]


def _prompts(work: Path) -> Read:
    file = work / "p.csv"

    def read(mutator: Mutator) -> None:
        file.write_bytes(mutator.table(PROMPTS))
        assert all(isinstance(r.prompt, str) for r in read_requests(table=file, num_images=2))

    return read


def _prompt_labels(work: Path) -> Read:
    (work / "0.png").write_bytes(IMAGES[0])
    (work / "samples.jsonl").write_bytes(dumped({"file": "0.png", "prompt": "x"}) + b"\n")
    result = open_images(work)
    rows = [["prompt", "pleural_effusion", "cardiomegaly"], ["x", "1", ""], ["y", "-1", "0"]]

    def read(mutator: Mutator) -> None:
        (work / "labels.csv").write_bytes(mutator.table(rows))
        labels_by_prompt(result, work / "labels.csv")

    return read


def _prompt_list(work: Path) -> Read:
    def read(mutator: Mutator) -> None:
        (work / "p.txt").write_bytes(mutator.bytes(b"A chest x-ray.\nNo finding.\n"))
        read_prompts(work / "p.txt")

    return read


def _latents(work: Path) -> Read:
    np.save(work / "whole.npy", np.zeros((1, 4, 4, 4), np.float32))
    whole = (work / "whole.npy").read_bytes()

    def read(mutator: Mutator) -> None:
        (work / "l.npy").write_bytes(mutator.bytes(whole))
        read_latents(work / "l.npy")

    return read


def _image_metadata(work: Path) -> Read:
    metadata = {"prompt": "x", "seed": 1, "lora": [], "row": {"a": "b"}}
    save_png(np.zeros((8, 8, 3), np.uint8), work / "whole.png", metadata)
    whole = (work / "whole.png").read_bytes()

    def read(mutator: Mutator) -> None:
        (work / "m.png").write_bytes(mutator.image(whole))
        assert isinstance(read_metadata(work / "m.png"), dict)

    return read


TARGETS = {
    "images": _images,
    "image_set": _image_set,
    "masks": _masks,
    "image_folder_csv": _image_folder(".csv"),
    "image_folder_jsonl": _image_folder(".jsonl"),
    "nih": _nih,
    "chexpert": _tables("chexpert.csv", CHEXPERT),
    "generations": _tables("generations.csv", GENERATIONS),
    "samples": _tables("samples.jsonl", SAMPLES),
    "export_images": _export_images,
    "prompts": _prompts,
    "prompt_labels": _prompt_labels,
    "prompt_list": _prompt_list,
    "latents": _latents,
    "image_metadata": _image_metadata,
}
