"""When two failures of a case count as the same, which is what shrinking keeps."""

import pytest

from sdpo.parity.audit.launch import BundlesRequest
from sdpo.parity.bundles.make_and_replay import failure_signature, make
from sdpo.parity.compare.comparison import Comparison
from sdpo.parity.compare.statuses import Status
from sdpo.parity.compare.verdict import CaseResult


def signature(*comparisons):
    return failure_signature(CaseResult("c", "loss", comparisons=list(comparisons)))


def test_sizes_and_stages_that_hold_do_not_matter():
    small, large = (
        Comparison("tail", Status.DIVERGENT, "c", max_abs=size, effect="value")
        for size in (1.0, 2.0)
    )
    assert signature(small) == signature(large, Comparison("support", Status.PASS, "c"))


@pytest.mark.parametrize(
    "other",
    [
        Comparison("support", Status.DIVERGENT, "c", effect="value"),
        Comparison("tail", Status.DIVERGENT, "c", effect="nan"),
        Comparison("tail", Status.ERROR, "c"),
    ],
)
def test_another_stage_effect_or_status_is_another_failure(other):
    assert signature(other) != signature(Comparison("tail", Status.DIVERGENT, "c", effect="value"))


def test_errors_are_told_apart_by_their_kind_and_not_by_their_words():
    one, same, another = (
        Comparison("tail", Status.ERROR, "c", note=note)
        for note in ("raised ValueError: 1", "raised ValueError: 2", "raised KeyError: 1")
    )
    assert signature(one) == signature(same) != signature(another)


def test_a_whole_implementation_has_no_bundles(tmp_path):
    request = BundlesRequest("reference", (), "c", (("P-L001", "tail"),), str(tmp_path), 1)
    assert make(request).bundles == []
