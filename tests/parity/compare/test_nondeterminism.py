"""A candidate that differs from itself: what that withdraws."""

import torch

from sdpo.parity.compare.comparison import Comparison
from sdpo.parity.compare.nondeterminism import WITHDRAWN, scatter, withdrawn
from sdpo.parity.compare.statuses import Status
from sdpo.parity.compare.verdict import CaseResult


def departing(actual, stage="divergence"):
    worst = {"actual": actual, "expected": 1.0}
    found = Comparison(stage, Status.DIVERGENT, "case", worst=worst, effect="value")
    return CaseResult("case", "loss", comparisons=[found])


def statuses(result, *scatters):
    (left,) = withdrawn([result], scatters)
    return [(c.status, c.note) for c in left.comparisons]


def test_the_difference_of_two_runs_is_relative_to_the_largest_value():
    one = {"divergence": torch.tensor([4.0, 2.0]), "aggregate": torch.tensor(1.0)}
    other = {"divergence": torch.tensor([4.0, 3.0]), "aggregate": torch.tensor(1.0)}
    assert scatter(one, other) == {"divergence": 0.25}


def test_a_departure_must_be_ten_times_as_large():
    within, beyond = departing(1.9), departing(2.5)  # 0.47 and 0.6 of the larger value
    assert statuses(within, {"divergence": 0.05}) == [(Status.NOT_COVERED, WITHDRAWN)]
    assert statuses(beyond, {"divergence": 0.05}) == [(Status.DIVERGENT, "")]


def test_the_largest_difference_of_all_cases_and_names_of_a_stage_counts():
    shown = departing(2.5, stage="log_probs")
    small, large = {"log_probs.student": 0.01}, {"log_probs.teacher": 0.1}
    assert statuses(shown, small) == [(Status.DIVERGENT, "")]
    assert statuses(shown, small, large) == [(Status.NOT_COVERED, WITHDRAWN)]


def test_without_a_difference_nothing_is_withdrawn():
    assert statuses(departing(1.1), {}) == [(Status.DIVERGENT, "")]
