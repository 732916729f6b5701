"""Two sets of images laid out as other groups' evaluation scripts read them.

    clean-fid/real, clean-fid/synthetic     PNG folders: fid.compute_fid(real, synthetic)
    roentgen/real/ID.jpg                    RoentGen's calculate_fid.py and calculate_ms-ssim.py
    roentgen/synthetic/ID_K.jpg             K counts the images of one prompt
    roentgen/real.csv                       Path: the same images, for its --real CSV
    chexgenbench/real, chexgenbench/synthetic, chexgenbench/real.csv
    chexgenbench/generations_with_metadata.csv

CheXGenBench's scripts disagree on the name of the image's column, so the table has all of them
(`GENERATIONS`). It takes one image per prompt: the first one.

RoentGen's scripts look for .jpg alone: those files lose a little to the compression (quality 95),
the PNG folders nothing.
"""

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from medsd_jax.data.labels import label_name
from medsd_jax.errors import UserError
from medsd_jax.evaluation.images.image_sets import ImageSet
from medsd_jax.folders import new_folder

LAYOUTS = ("files", "roentgen", "chexgenbench")
"""How a folder of samples can be laid out, see `workflows.sample_folder`."""
GENERATIONS = (
    "id", "path", "prompt", "annotated_prompt", "img_savename", "synthetic_filename",
    "chexpert_labels",
)  # fmt: skip
"""Columns of generations_with_metadata.csv."""
CHEXPERT = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum",
    "Fracture", "Lung Lesion", "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other",
    "Pneumonia", "Pneumothorax", "Support Devices",
)  # fmt: skip
"""CheXpert's labels by their own names."""
_MAX_BYTES = 200
"""Of an id: file systems take 255, from which the layouts' prefixes and suffixes are taken."""


def write_image_folders(
    output: Path,
    real: ImageSet,
    synthetic: ImageSet,
    labels: Mapping[str, Sequence[Mapping[str, Any]]],
    on_image: Callable[[], object] = lambda: None,
) -> dict[str, int]:
    """Writes all three layouts.

    Args:
        output: a new or empty folder.
        real: the real images.
        synthetic: the generated ones; those of one prompt share an id.
        labels: "real" and "synthetic" -> labels of each image.
        on_image: called after each image.

    Returns:
        real, synthetic, prompts: how many of each.

    Raises:
        UserError: the folder holds something, or one id has several prompts.
    """
    real_ids, drawn_ids = unique_ids(real), sample_ids(synthetic)
    with new_folder(output, "exported images", last="roentgen") as new:
        rows = _write_sets(new, real, synthetic, real_ids, drawn_ids, labels, on_image)
    return {"real": len(real), "synthetic": len(synthetic), "prompts": rows}


def _write_sets(
    output: Path,
    real: ImageSet,
    synthetic: ImageSet,
    real_ids: Sequence[str],
    drawn_ids: Sequence[tuple[str, int]],
    labels: Mapping[str, Sequence[Mapping[str, Any]]],
    on_image: Callable[[], object],
) -> int:
    """Writes the layouts; returns the number of prompts."""
    clean, roentgen, bench = (output / n for n in ("clean-fid", "roentgen", "chexgenbench"))
    for parent in (clean, roentgen, bench):
        for name in ("real", "synthetic"):
            (parent / name).mkdir(parents=True)
    path_of, rows = {}, []
    for i, name in enumerate(real_ids):
        image = Image.fromarray(real.read(i))
        image.save(clean / "real" / f"{name}.png")
        image.save(roentgen / "real" / f"{name}.jpg", quality=95)
        image.save(bench / "real" / f"{name}.png")
        path_of[name] = f"{name}.png"
        rows.append([path_of[name], real.texts[i], chexpert_cell(labels["real"][i])])
        on_image()
    _write(bench / "real.csv", ("path", "annotated_prompt", "chexpert_labels"), rows)
    _write(roentgen / "real.csv", ("Path",), [[f"real/{name}.jpg"] for name in real_ids])
    rows = []
    for i, (name, count) in enumerate(drawn_ids):
        image = Image.fromarray(synthetic.read(i))
        image.save(clean / "synthetic" / f"{name}_{count}.png")
        image.save(roentgen / "synthetic" / f"{name}_{count}.jpg", quality=95)
        if count == 0:
            file, prompt = f"SyntheticImg_{name}.png", synthetic.texts[i]
            image.save(bench / "synthetic" / file)
            cell = chexpert_cell(labels["synthetic"][i])
            rows.append([name, path_of.get(name, ""), prompt, prompt, file, file, cell])
        on_image()
    _write(bench / "generations_with_metadata.csv", GENERATIONS, rows)
    return len(rows)


def unique_ids(images: ImageSet) -> list[str]:
    """A file name for every image: its id or the stem of its key; numbers where two are equal."""
    names = [_safe(own or Path(key).stem) for own, key in zip(images.ids, images.keys, strict=True)]
    if len(set(names)) == len(names) and all(_fits(name) for name in names):
        return names
    return [f"{number:06d}" for number in range(len(names))]


def sample_ids(images: ImageSet) -> list[tuple[str, int]]:
    """(id, k) of every image: the id of its prompt and which of the prompt's images it is.

    Raises:
        UserError: one id has several prompts.
    """
    return numbered_ids(images.name, images.ids, images.texts, images.keys)


def numbered_ids(
    where: str, ids: Sequence[str], texts: Sequence[str], keys: Sequence[str]
) -> list[tuple[str, int]]:
    """(id, k) of images by their own ids, "" if there is none, and prompts.

    Args:
        where: how error messages call the set.
        ids: [n].
        texts: [n] prompts; of one prompt without an id, all images have its number.
        keys: [n], take the place of prompts that are not known.

    Raises:
        UserError: one id has several prompts.
    """
    result, prompt_of, count_of = [], {}, {}
    numbers: dict[str, int] = {}
    for own, text, key in zip(ids, texts, keys, strict=True):
        number = numbers.setdefault(text or key, len(numbers))
        name = _safe(own) if own else f"{number:06d}"
        if not _fits(name):
            raise UserError(
                f"{where}: the id {name[:40]!r}... has {len(own)} characters, too many for the "
                f"name of a file; give one of at most {_MAX_BYTES}"
            )
        if prompt_of.setdefault(name, text) != text:
            raise UserError(
                f"{where}: id {name!r} has the prompts {prompt_of[name]!r} and {text!r}; "
                "give each prompt an id of its own"
            )
        count_of[name] = count_of.get(name, -1) + 1
        result.append((name, count_of[name]))
    return result


def chexpert_cell(labels: Mapping[str, Any]) -> str:
    """CheXpert's 14 labels as the text of a dict: 1.0, 0.0, or None where it is not known."""
    values = {name: labels.get(label_name(name)) for name in CHEXPERT}
    return repr({name: None if value is None else float(value) for name, value in values.items()})


def _fits(name: str) -> bool:
    return len(name.encode()) <= _MAX_BYTES


def _safe(name: str) -> str:
    """A name that is one file's on every system."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)


def _write(table: Path, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
