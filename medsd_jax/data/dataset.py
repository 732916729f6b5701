"""Open a data set by name: prepare it once, reuse it ever after.

A prepared set lies in CACHE/SOURCE-FINGERPRINT. The fingerprint covers the source, its parameters,
the share of validation patients, the files (path, size, time of change) and the code that turns
them into records, so changed data is prepared anew and unchanged data never twice.
"""

import contextlib
import dataclasses
import hashlib
import inspect
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from medsd_jax.data.patient_split import assign_splits, check_no_leak
from medsd_jax.data.phantoms import phantom
from medsd_jax.data.records import SPLITS, TRAIN, VALIDATION, SourceRecords
from medsd_jax.data.sources import folder, nih14
from medsd_jax.data.tfds_builder import RecordSplit, write_records
from medsd_jax.errors import UserError
from medsd_jax.files import json_object
from medsd_jax.folders import alone_at, beside, remove_leftovers

_log = logging.getLogger(__name__)

SOURCES: Mapping[str, Callable[..., SourceRecords]] = {
    "phantom": phantom.load,
    "folder": folder.load,
    "nih14": nih14.load,
}
"""Name -> load(path, **params) -> SourceRecords."""

_NAMES_KEPT = 20
_INFO_FILE = "info.json"


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """What a prepared data set holds.

    Attributes:
        source: its name.
        fingerprint: names the content; equal for equal data.
        folder: where it lies.
        num_images: split -> count.
        num_patients: split -> count.
        label_names: every label of any record, sorted.
        skipped: reason -> (count, the first names).
        conversions: what was changed to store images -> how many.
    """

    source: str
    fingerprint: str
    folder: Path
    num_images: Mapping[str, int]
    num_patients: Mapping[str, int]
    label_names: tuple[str, ...]
    skipped: Mapping[str, tuple[int, tuple[str, ...]]]
    conversions: Mapping[str, int]

    def lines(self) -> list[str]:
        """Say it in a few lines for people."""
        lines = [
            f"{split}: {self.num_images[split]} images of {self.num_patients[split]} patients"
            for split in SPLITS
        ]
        for reason, (count, names) in self.skipped.items():
            more = ", ..." if count > 3 else ""
            lines.append(f"left out, {reason}: {count} ({', '.join(names[:3])}{more})")
        lines += [f"converted, {note}: {count}" for note, count in self.conversions.items()]
        return lines


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A prepared data set: two splits that share no patient, and what is known about them."""

    train: RecordSplit
    validation: RecordSplit
    info: DatasetInfo


def default_cache_dir() -> Path:
    """Return where prepared data goes unless it is said: the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "medsd_jax" / "data"


def open_dataset(
    name: str,
    path: Path | str | None = None,
    *,
    params: Mapping[str, object] | None = None,
    cache_dir: Path | str | None = None,
    validation_fraction: float = 0.1,
    progress: bool = True,
) -> Dataset:
    """Prepare a data set, or reuse what was prepared before.

    Args:
        name: "phantom", "folder" or "nih14".
        path: the folder of the images; None for phantoms.
        params: keyword arguments of the source's `load` (phantom: num_images, seed, image_size,
            findings).
        cache_dir: where prepared data goes; `default_cache_dir()` when None.
        validation_fraction: share of the patients that validate, where the source names no split.
        progress: show a progress bar while preparing.

    Returns:
        The data set.
    """
    if name not in SOURCES:
        raise UserError(f"data source {name!r} is unknown: choose from {', '.join(SOURCES)}")
    params = dict(params or {})
    allowed = list(inspect.signature(SOURCES[name]).parameters)[1:]
    for key in params:
        if key not in allowed:
            listed = ", ".join(allowed) or "none"
            raise UserError(f"the source {name!r} has no parameter {key!r} (it has: {listed})")
    cache = Path(cache_dir).expanduser() if cache_dir else default_cache_dir()
    folder_of_data = Path(path).expanduser().resolve() if path is not None else None
    fingerprint = _fingerprint(name, folder_of_data, params, validation_fraction)
    target = cache / f"{name}-{fingerprint}"
    remove_leftovers(cache)
    if not (target / _INFO_FILE).is_file():
        source = SOURCES[name](folder_of_data, **params)
        try:
            cache.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write prepared data to {str(cache)!r}: {error}") from error
        with alone_at(target):
            if not (target / _INFO_FILE).is_file():
                _prepare(
                    target, name, fingerprint, source, folder_of_data, validation_fraction, progress
                )
    info = _read_info(target)
    dataset = Dataset(
        RecordSplit(target, TRAIN, fingerprint), RecordSplit(target, VALIDATION, fingerprint), info
    )
    ids = {s.name: s.patient_ids for s in (dataset.train, dataset.validation)}
    check_no_leak(
        [p for s in SPLITS for p in ids[s]], [s for s in SPLITS for _ in range(len(ids[s]))]
    )
    _log.info("%s (%s): %s", name, target.name, "; ".join(info.lines()))
    return dataset


def _fingerprint(
    name: str, path: Path | None, params: Mapping[str, object], validation_fraction: float
) -> str:
    digest = hashlib.sha256()
    identity = {"source": name, "params": params, "validation_fraction": validation_fraction}
    digest.update(json.dumps(identity, sort_keys=True, default=list).encode())
    here = Path(__file__).parent
    stems = ("findings", "labels", "patients", "patient_split", "stored_image", "tfds_builder")
    code = [here / f"{stem}.py" for stem in stems]
    code += sorted((here / "sources").glob("*.py")) + sorted((here / "phantoms").glob("*.py"))
    for file in code:
        digest.update(file.read_bytes())
    if path is not None:
        for parent, folders, files in os.walk(path):
            folders.sort()
            for file_name in sorted(files):
                file = Path(parent) / file_name
                digest.update(os.fsencode(file.relative_to(path)))
                with contextlib.suppress(OSError):  # a link to nowhere or to itself
                    stat = file.stat()
                    digest.update(f"\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _prepare(
    target: Path,
    name: str,
    fingerprint: str,
    source: SourceRecords,
    path: Path | None,
    validation_fraction: float,
    progress: bool,
) -> None:
    """Write everything into a temporary sibling and rename it: a killed run leaves no half set."""
    for reason, names in source.problems.items():
        _log.warning("%d left out, %s: %s", len(names), reason, _some(names))
    splits = assign_splits(source.records, validation_fraction)
    with beside(target) as work:
        report = write_records(work, source.records, splits, progress=progress)
        skipped = dict(source.problems)
        if report.unreadable:
            skipped["unreadable image"] = tuple(report.unreadable)
        if not any(report.rows.values()):
            reasons = "; ".join(f"{len(n)} {reason}: {_some(n)}" for reason, n in skipped.items())
            raise UserError(f"no readable image in {str(path)!r} ({reasons or 'it is empty'})")
        rows = {split: report.rows[split] for split in SPLITS}
        info = {
            "source": name,
            "fingerprint": fingerprint,
            "num_images": {s: len(rows[s]) for s in SPLITS},
            "num_patients": {s: len({r["patient_id"] for r in rows[s]}) for s in SPLITS},
            "label_names": sorted({k for s in SPLITS for r in rows[s] for k in r["labels"]}),
            "skipped": {r: [len(names), list(names[:_NAMES_KEPT])] for r, names in skipped.items()},
            "conversions": dict(report.conversions),
        }
        (work / _INFO_FILE).write_text(json.dumps(info, indent=2, ensure_ascii=False), "utf-8")
        try:
            work.rename(target)
        except OSError:
            # Another process on the same disk was faster; its content is the same.
            if not (target / _INFO_FILE).is_file():
                raise


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _read_info(target: Path) -> DatasetInfo:
    with json_object(target / _INFO_FILE, f"remove {target}: it is prepared again") as info:
        return DatasetInfo(
            source=info["source"],
            fingerprint=info["fingerprint"],
            folder=target,
            num_images={split: int(info["num_images"][split]) for split in SPLITS},
            num_patients={split: int(info["num_patients"][split]) for split in SPLITS},
            label_names=tuple(map(str, info["label_names"])),
            skipped={r: (count, tuple(names)) for r, (count, names) in info["skipped"].items()},
            conversions=dict(info["conversions"]),
        )
