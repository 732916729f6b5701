"""Batches: exact resume, complete over processes, epochs, sources, evaluation masks."""

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import Image

from medsd_jax.data.dataset import open_dataset
from medsd_jax.data.loader import Source, eval_batches, make_loader
from medsd_jax.errors import UserError

SIZE = 16


def _encode(texts):
    """A stand-in tokenizer: the ids are the text's bytes."""
    ids = np.zeros((len(texts), 77), np.int32)
    for row, text in zip(ids, texts, strict=True):
        raw = text.encode()[:77]
        row[: len(raw)] = list(raw)
    return ids


def _columns(split):
    return {"prompt_ids": _encode(split.texts)}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return open_dataset(
        "phantom",
        params={"num_images": 48, "image_size": SIZE},
        cache_dir=tmp_path_factory.mktemp("cache"),
        validation_fraction=0.25,
        progress=False,
    )


def _share(index, count, batch_size=8):
    """The rows of one of several processes, each of which holds neighbours."""
    return np.split(np.arange(batch_size), count)[index]


@pytest.fixture
def loaders(dataset):
    """make_loader for the train split; all are closed at the end."""
    made = []

    def make(split=None, batch_size=8, columns=None, sources=None, **changes):
        split = split or dataset.train
        columns = _columns(split) if columns is None else columns
        sources = sources or [Source(split, batch_size, columns)]
        made.append(make_loader(sources, **{"image_size": SIZE, "seed": 1, **changes}))
        return made[-1]

    yield make
    for loader in made:
        loader.close()


def _take(loader, count):
    return [next(loader) for _ in range(count)]


def _equal(a, b):
    return all(np.array_equal(a[key], b[key]) for key in a) and a.keys() == b.keys()


def _positions(split, batch):
    """Which records the rows of a batch are, found by their pixels."""
    images = np.stack(
        [np.asarray(Image.open(io.BytesIO(split[i].image))) for i in range(len(split))]
    )
    rows = batch["images"]
    return [int(np.nonzero((images == row).all(axis=(1, 2, 3)))[0][0]) for row in rows]


def test_batch_keys_shapes_dtypes(loaders):
    batch = next(loaders())
    assert set(batch) == {"images", "prompt_ids"}
    assert batch["images"].shape == (8, SIZE, SIZE, 3) and batch["images"].dtype == np.uint8
    assert batch["prompt_ids"].shape == (8, 77) and batch["prompt_ids"].dtype == np.int32


def test_image_and_text_belong_together(loaders, dataset):
    loader = loaders()
    for batch in _take(loader, 5):
        for place, ids in zip(_positions(dataset.train, batch), batch["prompt_ids"], strict=True):
            np.testing.assert_array_equal(ids, _encode([dataset.train.texts[place]])[0])


@pytest.mark.parametrize("threads", [0, 2])
def test_exact_resume(loaders, threads):
    loader = loaders(num_threads=threads)
    _take(loader, 3)
    state = loader.get_state()
    assert isinstance(state, bytes)
    json.loads(state)
    following = _take(loader, 9)  # crosses an epoch
    fresh = loaders(num_threads=threads)
    _take(fresh, 1)
    fresh.set_state(state)
    assert all(_equal(a, b) for a, b in zip(following, _take(fresh, 9), strict=True))
    loader.set_state(state)
    assert _equal(next(loader), following[0])
    assert not _equal(following[0], following[1])


def test_state_before_the_first_batch(loaders):
    loader = loaders()
    state = loader.get_state()
    first = next(loader)
    loader.set_state(state)
    assert _equal(next(loader), first)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"batch_size": 4}, "batch_size of train: 8 where this run has 4"), ({"seed": 2}, "seed: 1")],
)
def test_state_of_another_setup_is_refused(loaders, changes, named):
    with pytest.raises(UserError, match=named):
        loaders(**changes).set_state(loaders().get_state())


def test_state_of_other_data_is_refused(loaders, dataset):
    state = loaders().get_state()
    with pytest.raises(UserError, match="split"):
        loaders(dataset.validation).set_state(state)


def test_processes_share_every_global_batch(loaders):
    whole = loaders()
    parts = [loaders(rows=_share(i, 4)) for i in range(4)]
    for _ in range(8):
        batch, pieces = next(whole), [next(part) for part in parts]
        assert all(len(piece["images"]) == 2 for piece in pieces)
        for key in batch:
            np.testing.assert_array_equal(np.concatenate([p[key] for p in pieces]), batch[key])
    assert len({part.get_state() for part in parts} | {whole.get_state()}) == 1


def test_processes_load_distinct_images(loaders, dataset):
    parts = [loaders(rows=_share(i, 2)) for i in range(2)]
    for _ in range(2):
        seen = [set(_positions(dataset.train, next(part))) for part in parts]
        assert len(seen[0]) == len(seen[1]) == 4 and not seen[0] & seen[1]


def test_every_image_once_per_epoch_in_a_new_order(loaders, dataset):
    total = len(dataset.train)
    batches = _take(loaders(batch_size=1), 2 * total)
    places = [_positions(dataset.train, batch)[0] for batch in batches]
    assert sorted(places[:total]) == sorted(places[total:]) == list(range(total))
    assert places[:total] != places[total:] and places[:total] != list(range(total))


def test_order_depends_on_the_seed_alone(loaders):
    assert _equal(next(loaders(seed=5)), next(loaders(seed=5, num_threads=0, cache_bytes=0)))
    assert not _equal(next(loaders(seed=5)), next(loaders(seed=6)))


def test_what_does_not_fill_a_batch_waits_for_the_next_epoch(loaders, dataset):
    """No image is left out where the batch size does not divide the images."""
    total = len(dataset.train)
    assert total % 8, "choose another num_images: this test needs a remainder"
    numbers = {"number": np.arange(total)}
    seen = np.concatenate([b["number"] for b in _take(loaders(columns=numbers), total)])
    for epoch in seen.reshape(8, total):
        assert sorted(epoch) == list(range(total))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"batch_size": 1000}, "fewer than one batch of 1000"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"image_size": 0}, "image_size is 0"),
        ({"resize_mode": "zoom"}, "'zoom'"),
        ({"seed": -1}, "seed is -1"),
        ({"num_threads": -1}, "num_threads is -1"),
    ],
)
def test_mistakes(loaders, changes, named):
    with pytest.raises(UserError, match=named):
        loaders(**changes)


def test_small_splits_are_decoded_once(loaders, dataset, monkeypatch):
    counts = {"cached": 0, "not": 0}
    real = type(dataset.train).__getitem__
    for name, cache_bytes in (("cached", 2**30), ("not", 0)):

        def counting(self, index, name=name):
            counts[name] += 1
            return real(self, index)

        monkeypatch.setattr(type(dataset.train), "__getitem__", counting)
        _take(loaders(batch_size=1, num_threads=0, cache_bytes=cache_bytes), 3 * len(dataset.train))
    assert counts == {"cached": len(dataset.train), "not": 3 * len(dataset.train)}


def _eval(split, **changes):
    arguments = {
        "num_examples": 5,
        "batch_size": 4,
        "columns": _columns(split),
        "image_size": SIZE,
    }
    return eval_batches(split, **arguments | changes)


def test_eval_batches_are_the_first_examples_padded(dataset):
    batches = _eval(dataset.validation)
    assert len(batches) == 2 and batches.num_examples == 5
    first, second = list(batches)
    assert _positions(dataset.validation, first) == [0, 1, 2, 3]
    assert _positions(dataset.validation, second) == [4, 4, 4, 4]
    np.testing.assert_array_equal(first["mask"], np.float32([1, 1, 1, 1]))
    np.testing.assert_array_equal(second["mask"], np.float32([1, 0, 0, 0]))
    assert second["mask"].dtype == np.float32
    assert all(_equal(a, b) for a, b in zip(batches, batches, strict=True))


def test_eval_batches_over_processes(dataset):
    whole = list(_eval(dataset.validation))
    parts = [list(_eval(dataset.validation, rows=_share(i, 2, 4))) for i in range(2)]
    for number, batch in enumerate(whole):
        for key in batch:
            joined = np.concatenate([part[number][key] for part in parts])
            np.testing.assert_array_equal(joined, batch[key])


def test_eval_batches_of_all(dataset):
    for asked in (None, 10**6):
        batches = _eval(dataset.validation, num_examples=asked)
        assert sum(b["mask"].sum() for b in batches) == len(dataset.validation)


def test_eval_mistakes(dataset, tmp_path):
    with pytest.raises(UserError, match="num_examples is 0"):
        _eval(dataset.validation, num_examples=0)
    alone = open_dataset(
        "phantom",
        params={"num_images": 4, "image_size": SIZE},
        cache_dir=tmp_path,
        validation_fraction=0.0,
        progress=False,
    )
    with pytest.raises(UserError, match="validation split is empty"):
        _eval(alone.validation)


def test_columns_travel_with_their_images(loaders, dataset):
    """Any array of one row a record; here each record's number."""
    numbers = np.arange(len(dataset.train))
    batch = next(loaders(columns={"number": numbers, **_columns(dataset.train)}))
    ids = _encode(dataset.train.texts)
    np.testing.assert_array_equal(batch["prompt_ids"], ids[batch["number"]])


def test_selected_records_are_a_split_of_their_own(dataset):
    part = dataset.train.select([5, 2, 9], "part")
    assert len(part) == 3 and part.name == "part"
    assert part.keys == tuple(dataset.train.keys[i] for i in (5, 2, 9))
    assert part[1].key == dataset.train.keys[2]
    assert part[1].read_bytes() == dataset.train[2].read_bytes()
    again = part.select([2], "one")
    assert again[0].key == dataset.train.keys[9]
    assert part.fingerprint != dataset.train.fingerprint


def _two(dataset, batch_sizes=(5, 3), counts=(22, 12)):
    """The first images of the split, and the last ones; each knows its number in the split."""
    total = len(dataset.train)
    numbers = np.arange(counts[0]), np.arange(total - counts[1], total)
    assert counts[0] + counts[1] <= total
    return [
        Source(dataset.train.select(rows.tolist(), name), size, {"number": rows})
        for name, rows, size in zip(("data", "prior"), numbers, batch_sizes, strict=True)
    ]


def test_each_source_has_its_rows_and_an_order_of_its_own(loaders, dataset):
    """Each is seen as a whole in each of its epochs, whatever the length of the other's."""
    sources = _two(dataset)
    batches = _take(loaders(sources=sources), 44)
    numbers = np.stack([batch["number"] for batch in batches])
    assert numbers.shape == (44, 8)
    for rows, source in zip((numbers[:, :5], numbers[:, 5:]), sources, strict=True):
        expected = sorted(source.columns["number"])
        epochs = rows.reshape(-1, len(expected))
        assert len(epochs) > 9 and all(sorted(epoch) == expected for epoch in epochs)
    for batch in batches[:3]:
        assert _positions(dataset.train, batch) == list(batch["number"])


def test_the_rows_of_one_source_do_not_depend_on_the_other(loaders, dataset):
    sources = _two(dataset)
    both = _take(loaders(sources=sources), 9)
    for source, rows in zip(sources, (slice(0, 5), slice(5, 8)), strict=True):
        for batch, whole in zip(_take(loaders(sources=[source]), 9), both, strict=True):
            assert _equal(batch, {k: x[rows] for k, x in whole.items()})


@pytest.mark.parametrize(
    "processes",
    [
        [[0, 1, 2, 3], [4, 5, 6, 7]],
        [[0, 1, 2, 3, 4], [5, 6, 7]],  # one process has none of the prior, one nothing else
        [[0, 3, 5], [1, 6], [2, 4, 7]],  # as the shards along a torus
    ],
)
def test_sources_resume_and_are_cut_among_processes(loaders, dataset, processes):
    sources = _two(dataset)
    whole = loaders(sources=sources)
    _take(whole, 3)
    state = whole.get_state()
    following = _take(whole, 6)
    for rows in processes:
        part = loaders(sources=sources, rows=np.array(rows))
        part.set_state(state)
        for batch, mine in zip(following, _take(part, 6), strict=True):
            assert _equal(mine, {k: x[rows] for k, x in batch.items()})
        assert part.get_state() == whole.get_state()


def test_latents_take_the_place_of_images(loaders, dataset):
    sources = [
        dataclasses.replace(x, latent_moments=x.columns["number"][:, None].astype(np.float32))
        for x in _two(dataset)
    ]
    for batch in _take(loaders(sources=sources), 4):
        assert batch.keys() == {"latent_moments", "number"}
        np.testing.assert_array_equal(batch["latent_moments"][:, 0], batch["number"])


def test_sources_share_the_memory_for_decoded_images(loaders, dataset, monkeypatch):
    """The first is kept where the second no longer fits."""
    read, real = [], type(dataset.train).__getitem__

    def counting(self, index):
        read.append(self.name)
        return real(self, index)

    monkeypatch.setattr(type(dataset.train), "__getitem__", counting)
    room = (22 + 12) * SIZE * SIZE * 3 - 1
    _take(loaders(sources=_two(dataset), num_threads=0, cache_bytes=room), 12)
    assert (read.count("data"), read.count("prior")) == (22, 36)


def test_a_source_smaller_than_its_rows(loaders, dataset):
    with pytest.raises(UserError, match=r"prior has 2 images, fewer than one batch of 3: lower"):
        loaders(sources=_two(dataset, counts=(22, 2)))


@pytest.mark.parametrize(
    ("now", "named"),
    [
        ({"counts": (22, 10)}, "num_images of prior: 12"),
        ({"batch_sizes": (5, 2)}, "same batch_size of prior"),
        ({"counts": (21, 12)}, "num_images of data: 22"),
    ],
)
def test_state_of_other_sources_is_refused(loaders, dataset, now, named):
    state = loaders(sources=_two(dataset)).get_state()
    with pytest.raises(UserError, match=named):
        loaders(sources=_two(dataset, **now)).set_state(state)
    with pytest.raises(UserError, match="number of sources: 2 where this run has 1"):
        loaders(sources=_two(dataset)[:1]).set_state(state)


def test_state_of_an_earlier_version_is_one_line_that_says_so(loaders):
    state = json.loads(loaders().get_state()) | {"version": 2, "records": "a91a2c53977ab626"}
    del state["sources"]
    with pytest.raises(UserError, match=r"another version .*another workdir") as refused:
        loaders().set_state(json.dumps(state).encode())
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("count", ["NaN", "Infinity", "-Infinity", "1.5"])
def test_a_place_that_is_no_count_is_refused(loaders, count):
    loader = loaders(num_threads=0)
    next(loader)
    state = loader.get_state().decode()
    damaged = state.replace('"next_index": 1', f'"next_index": {count}')
    assert damaged != state
    with pytest.raises(UserError, match=f"{count} is no count"):
        loader.set_state(damaged.encode())
