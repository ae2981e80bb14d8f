"""The RUN document: its published schema, that it adds up, and that it can be judged again."""

import copy

import jsonschema
import pytest

from sdpo.parity.audit.launch import write_reports
from sdpo.parity.cases.stages import NAMES
from sdpo.parity.report.validate import InconsistentReportError, check
from tests.helpers import run_documents
from tests.helpers.report_schema import SCHEMA, VALIDATOR


def valid(run):
    VALIDATOR.validate({"schema_version": 1, "runs": [run]})


def changed(run, *path, value):
    document = copy.deepcopy(run)
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return document


def test_the_schema_is_a_schema_and_names_the_stages():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$defs"]["stage_name"]["enum"] == list(NAMES)


@pytest.mark.parametrize("name", run_documents.ALL)
def test_documents_of_all_verdicts_are_valid_and_add_up(name):
    run = run_documents.ALL[name]()
    valid(run)
    check(run)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("verdict",), "OK"),
        (("first_stage",), "loss"),
        (("surprise",), 1),
        (("exit_code",), 5),
        (("stages", 0, "status"), "FINE"),
        (("stages", 9, "max_abs"), -1.0),
        (("cases", 0, "comparisons", 0, "surprise"), 1),
        (("totals", "by_status"), {"GOOD": 2}),
        (("policy", "budget"), 1.5),
        (("location",), {"file": "x.py"}),
        (("invariants", 0, "status"), "PASS"),
        (("invariants", 0, "worst"), {"case": "usual"}),
    ],
)
def test_the_schema_refuses(path, value):
    with pytest.raises(jsonschema.ValidationError):
        valid(changed(run_documents.passing(), *path, value=value))


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
