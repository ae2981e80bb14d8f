"""The published schema, which every report keeps to."""

import json
from importlib.resources import files

from jsonschema import Draft202012Validator

SCHEMA = Draft202012Validator(
    json.loads((files("sdpo.parity") / "report.schema.json").read_text(encoding="utf-8"))
)
