"""Records from anywhere as a split, and several splits as one, through the loader."""

import functools
import io

import numpy as np
import pytest
from PIL import Image

from medsd_jax.data.dataset import open_dataset
from medsd_jax.data.loader import Source, eval_batches, make_loader
from medsd_jax.data.record_lists import JoinedSplits, RecordList
from medsd_jax.data.records import Record

SIZE = 16


def png(value):
    buffer = io.BytesIO()
    Image.fromarray(np.full((SIZE, SIZE), value, np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return open_dataset(
        "phantom", params={"num_images": 30, "image_size": SIZE}, progress=False,
        cache_dir=tmp_path_factory.mktemp("cache"), validation_fraction=0.3,
    )  # fmt: skip


@pytest.fixture
def drawn():
    """Five plain images, drawn when they are asked for; one has the key of a phantom."""
    return RecordList(
        [
            Record(f"phantom_0_{i:06d}", functools.partial(png, 40 * i), f"grey {i}", f"q{i}",
                   {"pleural_effusion": i % 2})
            for i in range(5)
        ],
        "drawn", "abc",
    )  # fmt: skip


def test_records_are_a_split(drawn):
    assert len(drawn) == 5 and drawn.texts[3] == "grey 3"
    assert [row["pleural_effusion"] for row in drawn.labels] == [0, 1, 0, 1, 0]
    (batch,) = eval_batches(drawn, num_examples=None, batch_size=8, columns={}, image_size=SIZE)
    np.testing.assert_array_equal(batch["images"][:5, 0, 0, 0], [0, 40, 80, 120, 160])


def test_joined_splits_are_read_one_after_the_other(dataset, drawn):
    first = dataset.train.select([3, 0, 7], "first")
    whole = JoinedSplits([first, drawn, dataset.validation], "all")
    parts = [*((first, i) for i in range(3)), *((drawn, i) for i in range(5))]
    parts += [(dataset.validation, i) for i in range(len(dataset.validation))]
    assert whole.name == "all" and len(whole) == len(parts)
    for i, (part, place) in enumerate(parts):
        assert whole[i].read_bytes() == part[place].read_bytes()
        for column in ("keys", "texts", "patient_ids", "labels"):
            assert getattr(whole, column)[i] == getattr(part, column)[place]
    fingerprints = {s.fingerprint for s in (whole, first, drawn, dataset.validation)}
    assert len(fingerprints) == 4


def test_the_loader_gives_every_image_once_per_epoch(dataset, drawn):
    whole = JoinedSplits([drawn, dataset.train], "both")
    rows = np.arange(len(whole))
    source = Source(whole, len(whole), {"row": rows})
    loader = make_loader([source], image_size=SIZE, num_threads=0)
    first, second = next(loader), next(loader)
    loader.close()
    assert not np.array_equal(first["row"], second["row"])
    for batch in (first, second):
        assert sorted(batch["row"]) == list(rows)
        for row, image in zip(batch["row"], batch["images"], strict=True):
            grey = np.asarray(Image.open(io.BytesIO(whole[int(row)].read_bytes())).convert("L"))
            np.testing.assert_array_equal(image[..., 0], grey)
