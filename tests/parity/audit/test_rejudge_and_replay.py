"""What a replay says, for a reader."""

from sdpo.parity.audit.rejudge_and_replay import ReplayedComparison, ReplayResult, replay_text
from sdpo.parity.compare.statuses import Status, Verdict
from sdpo.parity.report.report_context import Environment, Seen

RESULT = ReplayResult(
    schema_version=1,
    candidate="loss.py:f",
    case="P-L001",
    verdict=Verdict.DIVERGENT,
    exit_code=1,
    first_stage="tail",
    note="",
    replay="same",
    seen_then=Seen(Status.DIVERGENT, "tail", "two\nlines"),
    comparisons=[
        ReplayedComparison(
            "tail", Status.DIVERGENT, 0.5, 2.0, {"actual": 1.5, "expected": 1.0}, "core_algos.py 12"
        )
    ],
    environment=Environment(),
    environment_differs={"torch": ("2.0", "2.1")},
    size="1 rows",
)


def test_the_verdict_comes_first_and_what_changed_last():
    lines = replay_text(RESULT).splitlines()
    assert lines[0] == "DIVERGENT candidate=loss.py:f case=P-L001 first=tail replay=same"
    assert lines[-1] == "  torch was 2.0, is 2.1"


def test_then_and_now_are_one_line_each():
    lines = replay_text(RESULT).splitlines()
    assert lines[2] == "  then: DIVERGENT at tail: two lines"
    assert lines[3] == "  now:  DIVERGENT"


def test_a_comparison_shows_both_values_and_where_the_reference_computes_it():
    (line,) = [line for line in replay_text(RESULT).splitlines() if line.startswith("  tail")]
    assert "1.5 instead of 1.0" in line
    assert "core_algos.py 12" in line
