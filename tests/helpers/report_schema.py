"""The published schema, which every report keeps to."""

import json
from importlib.resources import files
from typing import Any

from jsonschema import Draft202012Validator

from sdpo.parity.report.run_report import Report, RunReport

SCHEMA: dict[str, Any] = json.loads(
    (files("sdpo.parity.report") / "report.schema.json").read_text(encoding="utf-8")
)
VALIDATOR = Draft202012Validator(SCHEMA)


def assert_valid(*runs: RunReport) -> None:
    """The runs add up, and their document is one of the schema."""
    VALIDATOR.validate(json.loads(Report(schema_version=1, runs=list(runs)).text()))
