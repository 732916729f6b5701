"""The JSON schemas in schemas/, generated from the types of the reports.

python -m medsd_jax.reports.schema_files    writes them anew
"""

import json
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from medsd_jax.evaluation.reports.base import Report
from medsd_jax.evaluation.reports.classifiers import ClassifierReport, DownstreamUtilityReport
from medsd_jax.evaluation.reports.evaluation import EvaluationReport
from medsd_jax.evaluation.reports.membership import MembershipReport
from medsd_jax.evaluation.reports.programs import ExportCertificate, PlanReport
from medsd_jax.evaluation.reports.reconstruction import ReconstructionReport
from medsd_jax.evaluation.reports.studies import DemoReport, ReproductionReport
from medsd_jax.evaluation.reports.text_probe import TextProbeReport
from medsd_jax.reports.writing import adapter

FOLDER = Path(__file__).parent / "schemas"
REPORTS: tuple[type[Report], ...] = (
    EvaluationReport,
    ReconstructionReport,
    MembershipReport,
    TextProbeReport,
    DownstreamUtilityReport,
    ClassifierReport,
    ReproductionReport,
    DemoReport,
    PlanReport,
    ExportCertificate,
)


class _Schema(GenerateJsonSchema):
    """Titles of fields would repeat their names, and every key is always written."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def field_is_required(self, field: Any, total: bool) -> bool:
        return True


def schema_of(report: type[Report]) -> dict[str, Any]:
    """The JSON schema of a type of reports."""
    schema = adapter(report).json_schema(schema_generator=_Schema)
    return {"$schema": _Schema.schema_dialect} | _in_one_line(schema)


def _in_one_line(schema: Any) -> Any:
    """Descriptions without the line breaks that they have in the source."""
    if isinstance(schema, list):
        return [_in_one_line(x) for x in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: " ".join(x.split()) if key == "description" and isinstance(x, str) else _in_one_line(x)
        for key, x in schema.items()
    }


def schema_texts() -> dict[str, str]:
    """File name -> content, of every kind of report."""
    kinds = {report.kind: schema_of(report) for report in REPORTS}
    return {f"{kind}.json": json.dumps(x, indent=2) + "\n" for kind, x in kinds.items()}


if __name__ == "__main__":
    for name, text in schema_texts().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
