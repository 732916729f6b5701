"""The JSON schemas of reports, which say what every key means."""

import importlib.resources
import json
from typing import Any


def schema(kind: str) -> dict[str, Any]:
    """The JSON schema of one kind of report, such as "evaluation"."""
    file = importlib.resources.files("medsd_jax.reports") / "schemas" / f"{kind}.json"
    return json.loads(file.read_text(encoding="utf-8"))
