"""The folder that sample.py fills while it samples: images, samples.jsonl, layouts of others.

    files         00000.png ...                        the default; metadata inside every image
    roentgen      ID_K.jpg, ID.txt with the prompt     K counts the images of one prompt
    chexgenbench  SyntheticImg_ID.png                  and generations_with_metadata.csv at the end

ID is the prompt's column `id`, or its number. samples.jsonl names every image with its prompt,
seed and settings, a line as soon as the image is written: the same command goes on after the last
one when it was killed. Processes that share one mesh agree on where that is; the main one writes.
"""

import contextlib
import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medsd_jax.errors import UserError
from medsd_jax.evaluation.images.export import GENERATIONS, chexpert_cell, numbered_ids
from medsd_jax.evaluation.images.prompt_labels import labels_or_words
from medsd_jax.evaluation.images.tables import SAMPLES_FILE, read_table
from medsd_jax.files import atomic_write, parse_object, remove_parts, writing
from medsd_jax.locks import lock
from medsd_jax.parallel.multihost import from_main, is_main_process
from medsd_jax.sampling.images import save_png

_JPEG_QUALITY = 95
_NOT_COMPARED = ("model", "init_image", "start_latents")
"""Files may have moved: model_hash, edit_hash and start_latents_hash tell what was in them."""


class SampleFolder:
    """Where images go, in a fixed order; a context that locks the folder until it ends.

    Attributes:
        folder: made before the first image is drawn, so that a closed one is told in time.
        done: how many of the images were there already.
    """

    def __init__(self, folder: Path, layout: str, entries: Sequence[Mapping[str, Any]]):
        """Plans the files and finds those of an earlier, interrupted run.

        Args:
            folder: of the images.
            layout: one of `evaluation.images.export.LAYOUTS`.
            entries: [n], what is written down of each image: prompt, seed, row, settings.

        Raises:
            UserError: the folder holds images that were sampled in another way, ids clash,
                another process samples into it, or it cannot be written.
        """
        self._lock = contextlib.ExitStack()
        self.folder, self._layout, self._entries = folder, layout, entries
        names = [f"{i:05d}" for i in range(len(entries))]
        self._ids = names
        if layout != "files":
            own = [str(entry.get("row", {}).get("id", "")) for entry in entries]
            texts = [entry["prompt"] for entry in entries]
            numbered = numbered_ids("the prompts", own, texts, names)
            self._ids = [name for name, _ in numbered]
            names = [f"{name}_{k}" for name, k in numbered]
            if layout == "chexgenbench":
                _check_one_each(numbered)
                names = [f"SyntheticImg_{name}" for name in self._ids]
        suffix = ".jpg" if layout == "roentgen" else ".png"
        self.files = [name + suffix for name in names]
        self.done = self._agree_on_done()
        self._written = self.done

    def __enter__(self) -> "SampleFolder":
        return self

    def __exit__(self, *_) -> None:
        self._lock.close()
        if is_main_process():
            with contextlib.suppress(OSError):  # one that no image came into
                self.folder.rmdir()

    def add(self, images: np.ndarray, edit: Any = None) -> None:
        """Writes the next images and their lines.

        Args:
            images: [b, H, W, 3] uint8.
            edit: writes a pair beside each image (`sampling.edits.Edit`), or None.
        """
        if not is_main_process():
            return
        for image in images:
            i = self._written
            entry, path = self._entries[i], self.folder / self.files[i]
            self._save(image, path, entry)
            if edit is not None:
                edit.save_pair(image, path.with_name(f"{path.stem}_pair.png"), entry)
            if self._layout == "roentgen":
                text = self.folder / f"{self._ids[i]}.txt"
                with writing(text):
                    text.write_text(entry["prompt"] + "\n", encoding="utf-8", errors="replace")
            # After the image: what the manifest names is whole.
            manifest = self.folder / SAMPLES_FILE
            with writing(manifest), manifest.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"file": self.files[i], **entry}) + "\n")
            self._written += 1

    def finish(self) -> None:
        """Writes the table of the layout that has one."""
        if self._layout != "chexgenbench" or not is_main_process():
            return
        rows = read_table(self.folder / SAMPLES_FILE)
        labels = labels_or_words([row.text for row in rows], [row.labels for row in rows])
        table = self.folder / "generations_with_metadata.csv"
        with (
            atomic_write(table) as part,
            part.open("w", newline="", encoding="utf-8", errors="replace") as file,
        ):
            writer = csv.writer(file)
            writer.writerow(GENERATIONS)
            for i, entry in enumerate(self._entries):
                prompt, row, name = entry["prompt"], entry.get("row", {}), self.files[i]
                cell = row.get("chexpert_labels") or chexpert_cell(labels[i])
                annotated = row.get("annotated_prompt") or prompt
                path = row.get("path", "")
                writer.writerow([self._ids[i], path, prompt, annotated, name, name, cell])

    def first(self, count: int) -> np.ndarray:
        """The first images, read back: [count, H, W, 3] uint8."""
        images = []
        for file in self.files[:count]:
            with Image.open(self.folder / file) as image:
                images.append(np.asarray(image.convert("RGB")))
        return np.stack(images)

    def _save(self, image: np.ndarray, path: Path, entry: Mapping[str, Any]) -> None:
        with atomic_write(path) as part:
            if self._layout == "roentgen":
                Image.fromarray(image).save(part, format="JPEG", quality=_JPEG_QUALITY)
            else:
                save_png(image, part, entry)

    def _agree_on_done(self) -> int:
        """The main process looks; the others hear how many there are, or that it refused."""
        done, problem = -1, None
        if is_main_process():
            try:
                self._lock.enter_context(lock(self.folder, "a sampling"))
                remove_parts(self.folder)
                done = self._find_done()
            except UserError as error:
                self._lock.close()
                problem = error
        done = from_main(done)
        if done < 0:
            raise problem or UserError(f"{self.folder} is not used, see the main process")
        return done

    def _find_done(self) -> int:
        manifest = self.folder / SAMPLES_FILE
        if not manifest.exists():
            return 0
        # The last line may be half of one.
        try:
            lines = manifest.read_text(encoding="utf-8").split("\n")[:-1]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{manifest} cannot be read: {error}; remove it") from error
        if len(lines) > len(self._entries):
            raise self._refusal(f"{len(lines)} images, not {len(self._entries)}")
        done = 0
        for line, file, entry in zip(lines, self.files, self._entries, strict=False):
            self._compare(manifest, line, {"file": file, **entry})
            if not (self.folder / file).is_file():
                break
            done += 1
        kept = "".join(line + "\n" for line in lines[:done])
        with atomic_write(manifest) as part:
            part.write_text(kept, encoding="utf-8")
        return done

    def _compare(self, manifest: Path, line: str, expected: Mapping[str, Any]) -> None:
        result = parse_object(line, f"{manifest} is damaged: {line[:80]!r}", "remove it")
        expected = json.loads(json.dumps(expected))
        for key in [*expected, *result]:
            if key not in _NOT_COMPARED and result.get(key) != expected.get(key):
                before, now = (repr(values.get(key)) for values in (result, expected))
                raise self._refusal(f"{expected['file']} was made with {key} = {before}, not {now}")

    def _refusal(self, reason: str) -> UserError:
        return UserError(
            f"{self.folder} holds samples already: {reason}; name another folder or remove it"
        )


def _check_one_each(numbered: Sequence[tuple[str, int]]) -> None:
    again = next((name for name, k in numbered if k), None)
    if again is not None:
        raise UserError(
            f"layout chexgenbench takes one image per prompt, id {again!r} has more: give "
            "every prompt once, and one image of each"
        )
