"""kill -9 at every change of the file system: a program, because it forks.

    python -m tests.kill_points WORK NAME

Each writer runs in a child that is killed at its first, second, ... change; then the same call must
end well, with the files of a call that nobody interrupted, and without hidden leftovers. Prints one
JSON object: points, and wrong: what was not so.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path

import numpy as np

import medsd_jax
from medsd_jax.data.latents import encode_split
from medsd_jax.data.phantoms.phantom import phantom_records
from medsd_jax.data.record_lists import RecordList
from medsd_jax.data.sources.folder import write_image_folder
from medsd_jax.evaluation.images.export import write_image_folders
from medsd_jax.evaluation.images.image_sets import open_images
from medsd_jax.folders import beside, remove_leftovers
from medsd_jax.interop.diffusers_folder import check_writable
from medsd_jax.training.best import KeepBest
from medsd_jax.workflows.models import load
from medsd_jax.workflows.sample_folder import SampleFolder
from tests.tiny.pipeline import tiny_pipeline

WORK = Path(sys.argv[1])
_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link")
_state = {"at": 0, "count": 0, "under": None}


def _hook(event, args):
    if not _state["at"] or event not in ("open", *_CHANGES):
        return
    if event == "open" and not (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)):
        return
    names = [os.fsdecode(x) for x in args[:2] if isinstance(x, str | bytes | os.PathLike)]
    # Removing a tree goes by names relative to an open folder.
    if any(not name.startswith("/") or name.startswith(_state["under"]) for name in names):
        _state["count"] += 1
        if _state["count"] == _state["at"]:
            os.kill(os.getpid(), signal.SIGKILL)


def in_child(call, folder, kill_at=10**9):
    """(exit code, number of changes, what went wrong)."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        report = {"count": 0, "error": ""}
        try:
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            signal.alarm(60)
            _state.update(at=kill_at, count=0, under=str(folder))
            call(folder)
            report["count"] = _state["count"]
        except BaseException:
            report["error"] = traceback.format_exc()[-600:]
        _state["at"] = 0
        os.write(writer, json.dumps(report).encode())
        os._exit(bool(report["error"]))
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, json.loads(text or b'{"count": 0, "error": "killed"}')


def content(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


model = tiny_pipeline()
other = dataclasses.replace(model, params={k: x + 1 for k, x in model.params.items()})
images = np.arange(3 * 8 * 8 * 3, dtype=np.uint8).reshape(3, 8, 8, 3)
entries = [{"prompt": f"p{i}", "seed": i, "row": {"id": f"i{i}"}} for i in range(3)]


def save(folder):
    check_writable(folder / "model")
    medsd_jax.save(model, folder / "model")


def sampling(folder):
    with SampleFolder(folder / "look", "chexgenbench", entries) as out:
        for i in range(out.done, 3):
            out.add(images[i : i + 1])
        out.finish()


def best(folder):
    keep = KeepBest(
        folder, metric="m", larger_is_better=True, settings={}, resumed=True,
        save=lambda _, at: medsd_jax.save(model, at),
    )  # fmt: skip
    for step, value in ((1, 0.5), (2, 0.7)):
        keep({}, step, {"m": value})


def latents(folder):
    split = RecordList(phantom_records(num_images=4, image_size=16), "train", "x")
    encode = lambda x: x[:, ::8, ::8, :2]  # noqa: E731
    encode_split(
        split, encode, batch_size=2, image_size=16, resize_mode="pad", key="k", folder=folder
    )


def export_images(folder):
    sets = open_images(WORK / "images"), open_images(WORK / "images")
    write_image_folders(folder / "h", *sets, {name: [{}] * 3 for name in ("real", "synthetic")})


def prepared(folder):
    """What the preparation of data does with its folder; its own files are written in C++."""
    remove_leftovers(folder)
    if not (folder / "set").exists():
        with beside(folder / "set") as work:
            (work / "info.json").write_text("{}")
            work.rename(folder / "set")


def export(folder):
    write_image_folder(phantom_records(3, image_size=16), folder / "f", progress=False)


WRITERS = {
    "model": (None, save),
    "model over another": (lambda folder: medsd_jax.save(other, folder / "model"), save),
    "sampling": (None, sampling),
    "best": (None, best),
    "latents": (None, latents),
    "export-images": (None, export_images),
    "export of images": (None, export),
    "prepared data": (None, prepared),
}


def whole_or_none(folder):
    """A model that a reader finds after the kill is one of the two."""
    if (folder / "model").exists():
        result = load(folder / "model").params
        expected = ({k: np.asarray(x) for k, x in one.params.items()} for one in (model, other))
        same = [all(np.array_equal(result[k], x) for k, x in one.items()) for one in expected]
        assert any(same), "a mixture"


def main(name):
    before, call = WRITERS[name]
    if name == "export-images":
        with SampleFolder(WORK / "images", "files", entries) as out:
            out.add(images)
    ref, folder, wrong = WORK / "ref", WORK / "d", []

    def start(at):
        shutil.rmtree(at, ignore_errors=True)
        at.mkdir()
        if before:
            before(at)

    start(ref)
    code, report = in_child(call, ref)
    assert code == 0, report
    expected, points = content(ref), report["count"]
    for point in range(1, points + 1):
        start(folder)
        code, _ = in_child(call, folder, point)
        if code != -signal.SIGKILL:
            wrong.append([point, f"not killed: {code}"])
        if before:
            code, report = in_child(whole_or_none, folder)
            if code:
                wrong.append([point, "read", report["error"]])
        code, report = in_child(call, folder)
        if code:
            wrong.append([point, "again", report["error"]])
        elif content(folder) != expected:
            wrong.append([point, sorted(content(folder).items() ^ expected.items())[:4]])
    print(json.dumps({"points": points, "wrong": wrong[:4], "count": len(wrong)}))


if __name__ == "__main__":
    medsd_jax.save(model, WORK / "warm")  # traces the networks' shapes once, before the forks
    sys.addaudithook(_hook)
    main(sys.argv[2])
