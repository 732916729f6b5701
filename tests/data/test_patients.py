"""Patients by columns and by the paths of public data sets."""

import pytest

from medsd_jax.data.patients import patient_column, patient_of, warn_of_unknown


@pytest.mark.parametrize(
    ("path", "patient"),
    [
        ("CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg", "patient64541"),
        (r"D:\CheXpert\train\patient00001\study2\view1.jpg", "patient00001"),
        ("files/p10/p10000032/s50414267/02aa804e.jpg", "10000032"),
        ("p10000032/s50414267.png", "10000032"),
        ("images_001/images/00000013_026.png", "13"),
        ("00030805_000.png", "30805"),
        ("20240131_026.png", ""),
        ("00040131_026.png", ""),
        ("0013_026.png", ""),
        ("patients/study1/a.png", ""),
        ("a.png", ""),
    ],
)
def test_paths(path, patient):
    assert patient_of("", path) == patient and patient_of("nan", path) == patient
    assert patient_of("p7", path) == "p7"


def test_numbers_that_pandas_made_float():
    assert patient_of("10000032.0", "x") == "10000032" and patient_of("1.25", "x") == "1.25"


@pytest.mark.parametrize(
    ("names", "column"),
    [
        (("path", "Patient ID"), "Patient ID"),
        (("PatientID",), "PatientID"),
        (("study_id", "subject_id"), "subject_id"),
        (("subject_id", "patient_id"), "patient_id"),
        (("Patient Age", "id"), None),
    ],
)
def test_columns(names, column):
    assert patient_column(names) == column


def test_one_warning_of_unknown_patients(caplog):
    warn_of_unknown("set", ["a", "a"])
    assert not caplog.text
    warn_of_unknown("set", ["a", "", ""])
    assert "of 2 of 3 images no patient is known" in caplog.text and len(caplog.records) == 1
