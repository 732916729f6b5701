"""One reading of label columns, for records and for tables of evaluation."""

import math

import numpy as np
import pytest

from medsd_jax.data.labels import (
    NotAFinding,
    age_in_years,
    evaluated_labels,
    find_label,
    finding,
    label_columns,
    label_values,
    plain_value,
)
from medsd_jax.errors import UserError


@pytest.mark.parametrize(
    ("cells", "value"),
    [
        ((1, 1.0, True, "1", "1.0", " true ", "1,0"), 1),
        ((0, 0.0, -0.0, False, "0", "0.0", "FALSE"), 0),
        ((-1, -1.0, "-1", "-1.0", "", None, "nan", math.nan, "None", "<NA>"), None),
    ],
)
def test_the_ways_to_write_a_finding(cells, value):
    assert [finding(cell) for cell in cells] == [value] * len(cells)


@pytest.mark.parametrize("cell", [2, "0.5", "yes?", "\u00b2", [1], {}, "9" * 5000])
def test_everything_else_is_none(cell):
    with pytest.raises(NotAFinding):
        finding(cell)


@pytest.mark.parametrize(
    ("text", "years"),
    [
        ("68", 68), ("68.0", 68), ("057Y", 57), ("011M", 0), ("030M", 2), ("003D", 0), ("400D", 1),
        ("104W", 1), ("12 years", 12), ("411Y", None), ("\u00b2", None), ("", None), ("x", None),
        ("-3", None), ("9" * 5000, None),
    ],
)  # fmt: skip
def test_ages(text, years):
    assert age_in_years(text) == years


def columns_of(**cells):
    names = list(cells)
    rows = [
        ("here", dict(zip(names, row, strict=True))) for row in zip(*cells.values(), strict=True)
    ]
    columns = label_columns(names, rows, "here")
    return columns, [columns.read(row, where) for where, row in rows]


def test_findings_have_one_spelling_and_studies_are_none():
    columns, rows = columns_of(
        **{
            "Pleural Effusion": ("1.0", "-1.0", "0.0"),
            "No_Finding": ("", "1", ""),
            "Pleural-Thickening": ("0", "0", "1"),
            "study": ("1", "1", "0"),
            "Patient Sex": ("Male", "f", "?"),
            "ViewPosition": ("pa", "nan", "AP"),
            "site": ("1", "2", "3"),
            "Edema": ("", "", ""),
        }
    )
    assert columns.others == ("study", "site", "Edema")
    assert rows == [
        {"pleural_effusion": 1, "pleural_thickening": 0, "sex": "M", "view": "PA"},
        {"no_finding": 1, "pleural_thickening": 0, "sex": "F"},
        {"pleural_effusion": 0, "pleural_thickening": 1, "view": "AP"},
    ]


def test_nihs_lists():
    _, rows = columns_of(
        **{"Finding Labels": ("Effusion|Pleural_Thickening", "No Finding", "", "Mass")}
    )
    assert rows == [
        {"no_finding": 0, "mass": 0, "pleural_effusion": 1, "pleural_thickening": 1},
        {"no_finding": 1, "mass": 0, "pleural_effusion": 0, "pleural_thickening": 0},
        {},
        {"no_finding": 0, "mass": 1, "pleural_effusion": 0, "pleural_thickening": 0},
    ]


def test_one_finding_in_two_columns_is_refused():
    with pytest.raises(UserError, match="two columns for 'pleural_effusion'"):
        columns_of(**{"Pleural Effusion": ("1",), "pleural_effusion": ("0",)})


@pytest.mark.parametrize("cell", ["{1: 1}", "Edema", "-" * 4000 + "1", "{'a': [1]}", "(" * 9999])
def test_objects_of_labels_that_are_none(cell):
    with pytest.raises(UserError, match="are no object of name: 1 or 0") as caught:
        columns_of(chexpert_labels=(cell,))
    assert len(str(caught.value)) < 200


def test_lists_are_named(caplog):
    columns, rows = columns_of(regions=(["a"], ["b"]))
    assert rows == [{}, {}] and columns.others == ()
    assert "the lists or objects of 'regions' are not read" in caplog.text


def test_records_are_found_by_any_spelling():
    rows = [{"Pleural Effusion": 1.0}, {"Pleural Effusion": -1.0}, {}, {"Pleural Effusion": 0}]
    assert find_label(rows, "pleural_effusion") == "Pleural Effusion"
    expected = [1, np.nan, np.nan, 0]
    np.testing.assert_array_equal(label_values(rows, "pleural-effusion"), expected)
    assert find_label(rows, "edema") is None


def test_of_records_the_findings_and_traits_are_evaluated():
    rows = [
        {"No Finding": 1.0, "sex": "F", "age": 3, "note": "portable", "series": 1, "edema": ""},
        {"No Finding": 0.0, "sex": "", "age": "", "note": "", "series": 0, "edema": ""},
    ]
    assert evaluated_labels(rows) == [{"no_finding": 1, "sex": "F", "age": 3}, {"no_finding": 0}]


def test_other_cells():
    cells = ["3", "3.5", "inf", "nan", None, "x", 4]
    assert [plain_value(cell) for cell in cells] == [3, 3.5, "inf", "", "", "x", 4]
