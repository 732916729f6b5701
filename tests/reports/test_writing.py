"""Reports as files: generated schemas, checks at writing and reading, clear messages."""

import dataclasses
import json

import jsonschema
import pydantic
import pytest

from medsd_jax.errors import UserError
from medsd_jax.evaluation.reports.base import Estimate, LabelScores
from medsd_jax.evaluation.reports.classifiers import ClassifierReport
from medsd_jax.evaluation.reports.programs import PlanReport
from medsd_jax.reports.schema_files import FOLDER, REPORTS, schema_of, schema_texts
from medsd_jax.reports.writing import package_versions, read_report, to_json, write_report

AGAIN = "train again"


def make_report(**changes):
    scores = LabelScores(
        num_images=9, num_present=4, num_patients=3, too_few=False, brier=0.125,
        accuracy=Estimate(0.5, 3, (0.25, 0.75)), auroc=Estimate(1.0, 3), f1=Estimate(0.1, 3),
    )  # fmt: skip
    values = {
        "versions": package_versions(), "labels": {"effusion": scores}, "num_images": {"train": 9},
        "steps": 3, "image_size": 32, "started_from": None,
    }  # fmt: skip
    return ClassifierReport(**values | changes)


def test_the_schemas_on_disk_are_the_generated_ones():
    """Else: .venv/bin/python -m medsd_jax.reports.schema_files."""
    result = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}
    assert result == schema_texts()


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: report.kind)
def test_every_key_is_described_and_required(report):
    schema = schema_of(report)
    jsonschema.Draft202012Validator.check_schema(schema)
    for name, part in {"": schema, **schema.get("$defs", {})}.items():
        assert part["description"] and part["additionalProperties"] is False, name
        assert set(part["required"]) == set(part["properties"]), name
        for key, value in part["properties"].items():
            assert value["description"] and "\n" not in value["description"], (name, key)
    assert schema["properties"]["kind"]["const"] == report.kind
    assert schema["properties"]["schema_version"]["const"] == 1


def test_what_is_written_is_read_back_and_fits_the_schema(tmp_path):
    report = make_report()
    write_report(tmp_path / "new" / "a.json", report)
    assert read_report(tmp_path / "new" / "a.json", ClassifierReport, AGAIN) == report
    content = json.loads((tmp_path / "new" / "a.json").read_text(encoding="utf-8"))
    assert content == to_json(report)
    jsonschema.validate(content, schema_of(ClassifierReport))
    assert (content["kind"], content["schema_version"]) == ("classifier", 1)
    assert content["labels"]["effusion"]["accuracy"] == {
        "value": 0.5, "n": 3, "ci95": [0.25, 0.75]
    }  # fmt: skip
    assert content["labels"]["effusion"]["auroc"]["ci95"] is None


@pytest.mark.parametrize(
    "changes", [{"steps": 0}, {"image_size": -1}, {"num_images": {"train": 0}}]
)
def test_a_report_that_its_type_forbids_is_not_written(tmp_path, changes):
    path = tmp_path / "a.json"
    with pytest.raises(pydantic.ValidationError):
        write_report(path, make_report(**changes))
    with pytest.raises(ValueError, match="not JSON compliant"):
        nan = dataclasses.replace(make_report().labels["effusion"], brier=float("nan"))
        write_report(path, make_report(labels={"x": nan}))
    assert not path.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(kind="plan"), "has kind = 'plan', not 'classifier'"),
        (lambda r: r.update(schema_version=2), "has schema_version = 2, not 1"),
        (lambda r: r.pop("kind"), "has kind = None"),
        (lambda r: r.pop("steps"), "(steps: Field required)"),
        (lambda r: r.update(new=1), "(new: "),
        (lambda r: r["labels"]["effusion"]["f1"].update(n=-1), "(labels.effusion.f1.n: "),
        (lambda r: r["labels"]["effusion"].update(brier="0.1"), "(labels.effusion.brier: "),
    ],
)
def test_a_file_that_is_no_such_report_is_one_line(tmp_path, change, message):
    path = tmp_path / "a.json"
    content = to_json(make_report())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        read_report(path, ClassifierReport, AGAIN)
    line = str(error.value)
    assert message in line and line.startswith(str(path)) and line.endswith(AGAIN)
    assert "\n" not in line


def test_missing_and_damaged_files_are_one_line(tmp_path):
    with pytest.raises(UserError, match=f"is missing; {AGAIN}"):
        read_report(tmp_path / "a.json", PlanReport, AGAIN)
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match=f"is not valid JSON .*; {AGAIN}"):
        read_report(tmp_path / "a.json", PlanReport, AGAIN)
