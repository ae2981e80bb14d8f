"""Statuses, verdicts and exit codes."""

import json

import pytest

from sdpo.parity.compare.statuses import (
    EXIT_CODES,
    FAILING,
    RelationStatus,
    Status,
    Verdict,
    worst_exit_code,
    worst_status,
)


def test_the_worst_of_some_statuses_wins_and_none_is_not_covered():
    assert worst_status([Status.PASS, Status.DIVERGENT, Status.DECLARED]) == Status.DIVERGENT
    assert worst_status([Status.MATCH, Status.NOT_COVERED]) == Status.MATCH
    assert worst_status([]) == Status.NOT_COVERED


def test_only_divergences_and_errors_fail():
    assert [status for status in Status if status in FAILING] == ["DIVERGENT", "ERROR"]


@pytest.mark.parametrize("kind", [Status, Verdict, RelationStatus])
def test_a_status_is_its_text_in_reports(kind):
    for status in kind:
        assert json.dumps(status) == f'"{status.name}"'
        assert f"{status}" == status == status.name


def test_every_verdict_has_an_exit_code():
    assert set(EXIT_CODES) == set(Verdict)
    assert [v for v in Verdict if v.exit_code == 0] == [Verdict.PASS, Verdict.DECLARED]


def test_of_several_exit_codes_the_worst_counts():
    assert worst_exit_code([0, 3, 1, 2, 4]) == 4
    assert worst_exit_code([0, 3, 1, 2]) == 2
    assert worst_exit_code([3, 1, 0]) == 1
    assert worst_exit_code([0, 3]) == 3
