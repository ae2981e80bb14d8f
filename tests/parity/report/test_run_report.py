"""The report as a type: its published schema, what it refuses, and that it adds up."""

import json
from importlib.resources import files

import jsonschema
import msgspec
import pytest

from sdpo.parity.audit.report_files import write_reports
from sdpo.parity.cases.stages import NAMES
from sdpo.parity.compare.statuses import Status
from sdpo.parity.report.report_rows import ComparisonRow
from sdpo.parity.report.run_report import InconsistentReportError, Report, report_schema
from tests.helpers import run_documents
from tests.helpers.report_schema import SCHEMA, VALIDATOR, assert_valid
from tests.helpers.run_documents import changed


def test_the_schema_is_a_schema_and_names_the_stages():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$defs"]["StageRow"]["properties"]["name"]["enum"] == list(NAMES)


def test_the_shipped_schema_is_that_of_the_types():
    shipped = (files("sdpo.parity.report") / "report.schema.json").read_text(encoding="utf-8")
    assert shipped == report_schema(), "run: make schema"


@pytest.mark.parametrize("name", run_documents.ALL)
def test_documents_of_all_verdicts_are_valid_and_add_up(name):
    assert_valid(run_documents.ALL[name]())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("verdict",), "OK"),
        (("first_stage",), "loss"),
        (("surprise",), 1),
        (("exit_code",), 5),
        (("stages", 0, "status"), "FINE"),
        (("stages", 9, "max_abs"), -1.0),
        (("stages",), []),
        (("created",), None),
        (("cases", 0, "comparisons", 0, "surprise"), 1),
        (("totals", "by_status"), {"GOOD": 2}),
        (("policy", "budget"), 1.5),
        (("location",), {"file": "x.py"}),
        (("invariants", 0, "status"), "PASS"),
        (("invariants", 0, "worst"), {"case": "usual"}),
    ],
)
def test_types_and_schema_refuse_the_same(path, value):
    with pytest.raises(msgspec.ValidationError):
        changed(run_documents.passing(), *path, value=value)
    document = msgspec.to_builtins(run_documents.passing())
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate({"schema_version": 1, "runs": [document]})


def test_numbers_that_json_lacks_are_texts():
    run = changed(run_documents.divergent(), "stages", 11, "max_abs", value="inf")
    assert run.stages[11].max_abs == "inf"
    assert '"max_abs": "inf"' in Report(schema_version=1, runs=[run]).text()
    for wrong in ("infinite", "-inf", True):
        with pytest.raises(msgspec.ValidationError, match=r"\$.stages\[11\].max_abs"):
            changed(run, "stages", 11, "max_abs", value=wrong)


def test_a_field_with_its_usual_value_is_left_out_of_a_comparison():
    row = ComparisonRow("aggregate", Status.PASS, compared=2, max_abs=0.5)
    text = '{"stage": "aggregate", "status": "PASS", "compared": 2, "max_abs": 0.5}'
    assert json.dumps(msgspec.to_builtins(row)) == text
    assert msgspec.json.decode(text, type=ComparisonRow) == row


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("totals", "cases"), 3, "cases"),
        (("totals", "by_status"), {"MATCH": 2}, "cases by status"),
        (("totals", "comparisons"), 1, "comparisons"),
        (("totals", "bit_equal"), 0, "bit-equal"),
        (("totals", "elements"), 0, "elements"),
        (("coverage", "covered"), [], "covered stages"),
        (("coverage", "not_covered"), ["tail"], "stages not covered"),
        (("exit_code",), 1, "exit code"),
        (("stages", 3, "status"), "DIVERGENT", "PASS with stages"),
        (("stages", 3, "status"), "DECLARED", "PASS with stages"),
        (("doubts",), ["two runs differ"], "1 doubts"),
        (("cases", 0, "comparisons", 0, "stage"), "tail", "comparisons of config"),
        (("invariants",), [], "invariants"),
        (("invariants", 2, "status"), "VIOLATED", "is VIOLATED with"),
    ],
)
def test_a_document_that_does_not_add_up_is_not_written(path, value, words, tmp_path):
    run = changed(run_documents.passing(), *path, value=value)
    with pytest.raises(InconsistentReportError, match=words):
        write_reports(run, tmp_path)
    assert not list(tmp_path.iterdir())
