"""Splits by patient."""

import pytest

from medsd_jax.data.patient_split import (
    assign_splits,
    check_no_leak,
    first_images,
    first_patients,
    parse_split,
)
from medsd_jax.data.records import Record
from medsd_jax.errors import UserError


def _records(pairs):
    return [Record(f"{i}.png", b"", "t", p, split=s) for i, (p, s) in enumerate(pairs)]


def test_patients_stay_whole_and_the_share_is_right():
    records = _records([(f"p{i % 1000}", None) for i in range(3000)])
    splits = assign_splits(records, 0.2)
    sides = {}
    for record, split in zip(records, splits, strict=True):
        assert sides.setdefault(record.patient_id, split) == split
    share = sum(side == "validation" for side in sides.values()) / len(sides)
    assert 0.16 < share < 0.24  # 1000 draws at 0.2: three standard deviations are 0.038


def test_a_patient_keeps_the_split_when_others_come():
    few = _records([(f"p{i}", None) for i in range(100)])
    many = _records([(f"q{i}", None) for i in range(500)]) + few
    assert assign_splits(many, 0.3)[500:] == assign_splits(few, 0.3)


def test_the_hash_is_the_same_everywhere_and_for_ever():
    """Pinned: another hash would move patients from training to validation between releases."""
    splits = assign_splits(_records([(f"p{i}", None) for i in range(12)]), 0.5)
    assert "".join(split[0] for split in splits) == "vvtvttvvvtvt"


def test_given_split_wins_and_covers_the_patient():
    records = _records([("a", "validation"), ("a", None), ("b", "train"), ("b", None)])
    assert assign_splits(records, 0.0) == ("validation", "validation", "train", "train")


def test_given_splits_in_conflict():
    with pytest.raises(UserError, match="patient 'a' is in train and in validation"):
        assign_splits(_records([("a", "train"), ("a", "validation")]), 0.1)


def test_leak_check():
    check_no_leak(["a", "a", "b"], ["train", "train", "validation"])
    with pytest.raises(UserError, match="'b'"):
        check_no_leak(["a", "b", "b"], ["train", "train", "validation"])


@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.999])
def test_two_patients_fill_both_sides(fraction):
    splits = assign_splits(_records([("a", None), ("b", None)]), fraction)
    assert set(splits) == {"train", "validation"}


def test_zero_fraction_and_one_patient():
    assert set(assign_splits(_records([(f"p{i}", None) for i in range(50)]), 0.0)) == {"train"}
    assert len(assign_splits(_records([("a", None)]), 0.5)) == 1


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 2.0])
def test_bad_fraction(fraction):
    with pytest.raises(UserError, match=str(fraction)):
        assign_splits(_records([("a", None)]), fraction)


def test_parse_split():
    assert parse_split(" Valid ", "x") == "validation" and parse_split("TRAIN", "x") == "train"
    assert parse_split("", "x") is None and parse_split("test", "x") == "test"
    with pytest.raises(UserError, match=r"metadata.csv line 3: split is 'holdout'"):
        parse_split("holdout", "metadata.csv line 3")


def test_first_patients_are_whole_patients_in_the_order_of_their_hashes():
    patients = [f"p{i // 3}" for i in range(300)]
    few, more = (first_patients(patients, fraction) for fraction in (0.1, 0.3))
    assert sum(few) == 30 and sum(more) == 90
    assert all(more[i] for i in range(300) if few[i])  # a larger share keeps the smaller one
    assert all(len({few[i] for i in range(3 * p, 3 * p + 3)}) == 1 for p in range(100))
    validation = assign_splits(_records([(p, None) for p in patients]), 0.1)
    # One order serves both cuts, so those that validate would have been first.
    assert all(more[i] for i in range(300) if validation[i] == "validation")


@pytest.mark.parametrize("fraction", [0.0001, 0.9999])
def test_first_patients_leave_neither_side_empty(fraction):
    assert 1 <= sum(first_patients(["a", "b", "c"], fraction)) <= 2
    with pytest.raises(UserError, match=r"1 patient\(s\) cannot be parted"):
        first_patients(["a", "a"], 0.5)


def test_first_images_are_those_of_the_first_patients():
    patients = [f"p{i % 100}" for i in range(300)]
    for count in (1, 29, 30, 300):
        assert sum(first_images(patients, count)) == count
    few, more = (first_images(patients, count) for count in (29, 100))
    assert all(more[i] for i in range(300) if few[i])
    # Ten patients whole, but for one image of the last: those that first_patients takes.
    expected = {
        p for p, taken in zip(patients, first_patients(patients, 0.1), strict=True) if taken
    }
    assert {p for p, taken in zip(patients, few, strict=True) if taken} == expected
    for count in (0, 301):
        with pytest.raises(UserError, match=f"{count} images cannot be taken from 300"):
            first_images(patients, count)
