"""JUnit and SARIF: read by other programs, complete, and pointing at real lines."""

import json
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from junitparser import Error, Failure, JUnitXml, Skipped
from msgspec import structs

from sdpo.parity.cases.stages import NAMES, STAGES
from sdpo.parity.compare.statuses import FAILING
from sdpo.parity.render.junit import junit_report
from sdpo.parity.render.sarif import repository_root, sarif_report
from sdpo.parity.report.report_context import Location
from sdpo.parity.report.run_report import RunReport
from tests.helpers import run_documents

SCHEMA = json.loads((Path(__file__).parent / "sarif-2.1.0-subset.schema.json").read_text())


def located(file: str, line: int) -> RunReport:
    return structs.replace(run_documents.divergent(), location=Location(file, line))


def suites(run) -> list:
    return list(JUnitXml.fromstring(junit_report(run).encode()))


def outcomes(suite) -> dict[str, list[type]]:
    return {case.name: [type(r) for r in case.result] for case in suite}


@pytest.mark.parametrize("name", run_documents.ALL)
def test_junit_has_every_stage_and_case_with_its_outcome(name):
    run = run_documents.ALL[name]()
    stages, cases = suites(run)
    kinds = {"DIVERGENT": [Failure], "INCONCLUSIVE": [Failure], "ERROR": [Error]}
    kinds["NOT_COVERED"] = [Skipped]
    expected = {row.name: kinds.get(row.status, []) for row in run.stages}
    expected = {"verdict": kinds.get(run.verdict, [])} | expected
    assert outcomes(stages) == expected
    assert list(expected)[1:] == list(NAMES)
    assert outcomes(cases) == {case.id: kinds.get(case.status, []) for case in run.cases}
    for suite in (stages, cases):
        assert suite.tests == len(list(suite))
        assert suite.failures == sum(v == [Failure] for v in outcomes(suite).values())
        assert suite.errors == sum(v == [Error] for v in outcomes(suite).values())
    assert bool(stages.failures + stages.errors) == (run.exit_code != 0)


def test_junit_tells_figures_and_the_worst_place():
    root = ElementTree.fromstring(junit_report(run_documents.divergent()).encode())
    aggregate = root.find(".//testcase[@name='aggregate']")
    assert aggregate is not None
    properties = {p.get("name"): p.get("value") for p in aggregate.iter("property")}
    assert properties["budget_used"] == "1e+25 × budget"
    assert properties["reference"] == STAGES["aggregate"].source
    failure = aggregate.find("failure")
    assert failure is not None
    assert failure.attrib == {"type": "DIVERGENT", "message": "1 of 1 over budget"}
    assert failure.text == "case P-25 : 0.3963, expected 0.3185"


def test_junit_survives_what_xml_forbids():
    attack = "\x00\x1b[31m]]><!-- & <b> \ud800 " + "x" * 5000
    run = structs.replace(run_documents.raising(), candidate=attack, reasons=[attack])
    text = junit_report(run_documents.changed(run, "cases", 1, "note", value=attack))
    text.encode("utf-8")
    root = ElementTree.fromstring(text.encode())
    assert root.find(".//error") is not None


def results(run, folder=None):
    document = json.loads(sarif_report(run, folder))
    jsonschema_validate(document)
    (sarif,) = document["runs"]
    return sarif, sarif["results"]


def jsonschema_validate(document):
    import jsonschema

    jsonschema.Draft202012Validator(SCHEMA).validate(document)


@pytest.mark.parametrize("name", run_documents.ALL)
def test_sarif_has_a_result_for_every_failing_stage(name):
    run = run_documents.ALL[name]()
    sarif, found = results(run)
    rules = sarif["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == [f"sdpo/{n}" for n in (*NAMES, "verdict")]
    for entry in found:
        assert rules[entry["ruleIndex"]]["id"] == entry["ruleId"]
    failing = [row.name for row in run.stages if row.status in FAILING]
    errors = [r["ruleId"].removeprefix("sdpo/") for r in found if r["level"] == "error"]
    assert errors == (failing or (["verdict"] if run.verdict == "ERROR" else []))
    assert bool([r for r in found if r["level"] != "note"]) == (run.exit_code != 0)


def test_sarif_points_at_the_line_of_the_candidate_and_of_the_reference(tmp_path):
    (tmp_path / ".git").mkdir()
    source = tmp_path / "a folder" / "loss.py"
    source.parent.mkdir()
    run = located(str(source), 7)
    sarif, (entry,) = results(run, source.parent)
    place = entry["locations"][0]["physicalLocation"]
    assert unquote(place["artifactLocation"]["uri"]) == "a folder/loss.py"
    assert place["artifactLocation"]["uriBaseId"] == "%SRCROOT%"
    assert place["region"] == {"startLine": 7}
    related = entry["relatedLocations"][0]["physicalLocation"]
    assert related["artifactLocation"]["uri"] == "verl/trainer/ppo/core_algos.py"
    assert related["region"] == {"startLine": 1027, "endLine": 1082}
    assert [r["message"]["text"] for r in entry["relatedLocations"]] == [
        "the reference computes aggregate here",
        "the reference computes tail here",
    ]
    base = sarif["originalUriBaseIds"][related["artifactLocation"]["uriBaseId"]]["uri"]
    assert base.endswith(f"{run_documents.COMMIT}/")
    assert "explained by M07" in entry["message"]["text"]


def test_sarif_of_a_stage_function_points_at_that_function(tmp_path):
    places = {"aggregate": Location("port.py", 31)}
    run = structs.replace(run_documents.divergent(), stage_locations=places)
    _, (entry,) = results(run, tmp_path)
    place = entry["locations"][0]["physicalLocation"]
    assert (place["artifactLocation"]["uri"], place["region"]["startLine"]) == ("port.py", 31)


def test_sarif_outside_the_repository_has_the_whole_address(tmp_path):
    run = located("/elsewhere/x y.py", 1)
    _, (entry,) = results(run, tmp_path)
    artifact = entry["locations"][0]["physicalLocation"]["artifactLocation"]
    assert artifact == {"uri": "file:///elsewhere/x%20y.py"}


def test_fingerprints_do_not_change_with_the_line():
    runs = [located("l.py", line) for line in (1, 2)]
    first, second = (results(run)[1][0]["partialFingerprints"] for run in runs)
    assert first == second


def test_root_of_a_folder_without_repository_is_the_folder(tmp_path):
    assert repository_root(tmp_path) == tmp_path.resolve()
