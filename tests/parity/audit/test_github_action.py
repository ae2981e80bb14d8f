"""The composite action and the sample workflow: their scripts run under bash, outputs and marks."""

import re
from pathlib import Path

import pytest
from msgspec import structs

from sdpo.parity.audit.github_action import annotations, comment, escaped, main, tell
from tests.helpers import candidates, run_documents
from tests.helpers.golden_subset import subset
from tests.helpers.run_documents import changed
from tests.helpers.workflow_steps import ACTION, SAMPLE, audit_as_action, run_step, step_of

pytestmark = pytest.mark.usefixtures("certificates_once", "budgets_once")

ALLOWED = {
    "./",
    "actions/checkout@v4",
    "actions/setup-python@v5",
    "actions/upload-artifact@v4",
    "github/codeql-action/upload-sarif@v3",
}


def test_action_and_workflow_name_only_what_exists():
    steps = SAMPLE["jobs"]["parity"]["steps"]
    assert {step["uses"] for step in steps if "uses" in step} == ALLOWED
    given = step_of(steps, "Audit")["with"]
    assert given.keys() <= ACTION["inputs"].keys()
    identifiers = {step.get("id") for step in ACTION["runs"]["steps"]}
    for entry in ACTION["outputs"].values():
        used = re.findall(r"steps\.(\w+)\.outputs\.([\w-]+)", entry["value"])
        assert [name for name, _ in used] == ["audit"]
        assert "audit" in identifiers
    assert "://" not in str(ACTION) + str(SAMPLE)


def test_every_input_reaches_the_step():
    env = step_of(ACTION["runs"]["steps"], "Audit")["env"].values()
    used = {re.search(r"inputs\.([\w-]+)", value)[1] for value in env}  # type: ignore[index]
    assert used == ACTION["inputs"].keys() - {"install"}


def test_annotations_mark_the_line_and_cannot_be_broken_out_of(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)
    location = {"file": str(tmp_path / "port.py"), "line": 7}
    run = changed(run_documents.divergent(), "location", value=location)
    found = annotations(changed(run, "stages", 11, "note", value="bad\n::warning::forged"))
    assert [line.split(" ")[0] for line in found] == ["::error", "::error"]
    assert found[1].startswith("::error file=port.py,line=7,title=SDPO parity%3A aggregate::")
    assert "explained by M07" in found[1]
    assert all("\n" not in line for line in found)
    assert "bad%0A::warning" in found[1]
    assert escaped("a%b:c,d\r\n", ":,") == "a%25b%3Ac%2Cd%0D%0A"


@pytest.mark.parametrize(
    ("name", "command"), [("pass", None), ("declared", "notice"), ("inconclusive", "warning")]
)
def test_annotations_of_other_verdicts(name, command):
    found = annotations(run_documents.ALL[name]())
    assert [line.split(" ")[0] for line in found] == ([f"::{command}"] if command else [])


def test_comment_fits_whatever_the_reports_are():
    run = run_documents.divergent()
    assert comment([run]).startswith("### DIVERGENT: `loss.py:f`")
    assert "overview.png" not in comment([run])
    long = structs.replace(run, reasons=["x" * 4000] * 9, message="y" * 4000, lacks=["z" * 4000])
    assert len(comment([long] * 3)) < 10_000
    text = comment([run] * 200)
    assert len(text) < 65_536
    assert text.count("DIVERGENT candidate=loss.py:f") == 200


@pytest.mark.parametrize("name", run_documents.ALL)
def test_comment_on_two_candidates_has_at_most_forty_lines(name):
    text = comment([run_documents.ALL[name]()] * 2)
    assert len(text.splitlines()) <= 40
    assert "NOT_COVERED" not in "".join(
        line for line in text.splitlines() if " cases (" not in line
    )


def test_the_summary_of_the_step_is_the_whole_report(tmp_path):
    summary = tmp_path / "summary"
    tell([run_documents.divergent()], 1, tmp_path, {"GITHUB_STEP_SUMMARY": str(summary)})
    assert "### Stages" in summary.read_text()
    assert "### Stages" not in (tmp_path / "comment.md").read_text()


def test_outputs_are_of_the_worst_run(tmp_path):
    output = tmp_path / "output"
    runs = [run_documents.passing(), run_documents.divergent(), run_documents.inconclusive()]
    tell(runs, 1, tmp_path, {"GITHUB_OUTPUT": str(output)})
    assert output.read_text() == (
        f"verdict=DIVERGENT\nfirst-stage=tail\nexit-code=1\ncomment={tmp_path / 'comment.md'}\n"
    )


@pytest.mark.parametrize(
    ("variables", "words"),
    [({}, "no candidate"), ({"SDPO_CANDIDATE": "x", "SDPO_COVERAGE": "all"}, "a number")],
)
def test_wrong_inputs_are_an_error(variables, words, capsys):
    assert main(variables) == 2
    printed = capsys.readouterr().out.splitlines()
    assert words in printed[0]
    assert printed[1].startswith("::error ")


@pytest.mark.slow
def test_steps_run_under_bash(tmp_path):
    (tmp_path / "port.py").write_text(Path(candidates.__file__).read_text())
    (tmp_path / ".git").mkdir()
    subset(tmp_path / "goldens", ("P-L018", "P-L030"))
    done, outputs = audit_as_action(
        tmp_path, candidate="port.py:correct\nport.py:detached\n", goldens="goldens"
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert outputs["verdict"] == "DIVERGENT"
    assert (outputs["exit-code"], outputs["first-stage"]) == ("1", "gradient")
    assert re.search(r"^::error file=port.py,line=\d+,title=", done.stdout, re.MULTILINE)
    text = (tmp_path / outputs["comment"]).read_text()
    assert "## PASS: `port.py:correct`" in text
    assert (tmp_path / "github_summary").read_text().startswith("## PASS")
    assert len(list((tmp_path / "sdpo-parity").glob("*/report.sarif"))) == 2
    (tmp_path / "bin").mkdir()
    gh = tmp_path / "bin" / "gh"
    gh.write_text('#!/bin/sh\nfor x in "$@"; do last=$x; done\nwc -c < "$last"; echo "$@"\n')
    gh.chmod(0o755)
    context = {"github.token": "x", "github.event.pull_request.number": "7"}
    step = step_of(SAMPLE["jobs"]["parity"]["steps"], "Comment")
    done = run_step(step, context, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "pr comment 7 --edit-last" in done.stdout
