"""The table of faults under one condition: what it says is true, and belongs to this catalogue."""

import pytest

from sdpo.fixtures import packaged_family
from sdpo.parity.cases.loss_case import loss_cases
from sdpo.parity.explain.conditional_faults import conditional_faults, faults_of, shown_faults
from sdpo.parity.explain.conditions import CONDITIONS, fulfilled
from sdpo.parity.faults.catalogue import LOSS_FAULTS
from sdpo.parity.generated.make_case import covering_cases
from sdpo.parity.relations.transformed_cases import generated
from sdpo.settings.determinism import deterministic

ALL = {fault.id for fault in LOSS_FAULTS}


def cases():
    return [*loss_cases(packaged_family("loss")), *covering_cases(0)]


def test_the_table_is_of_this_catalogue_these_conditions_and_these_cases():
    table = shown_faults()
    assert table.faults == [fault.id for fault in LOSS_FAULTS]
    assert list(table.pairs) == list(CONDITIONS)
    assert list(table.cases) == [case.id for case in cases()]


def test_what_it_says_of_a_case_is_found_again():
    small = sorted(cases(), key=lambda case: case.student_logits.numel())[5::60]
    with deterministic():
        for case in small:
            recorded, found = int(shown_faults().cases[case.id], 16), faults_of(case)
            # a fault that is as large as its budget may be seen by one processor alone
            assert (recorded ^ found).bit_count() <= 1, case.id


def test_fewer_cases_show_fewer_and_the_worst_condition_comes_first():
    whole, part = (conditional_faults(chosen, ALL) for chosen in (cases(), cases()[:60]))
    assert whole is not None
    assert part is not None
    assert part.tested == whole.tested
    assert part.killed < whole.killed <= whole.tested
    counts = [tuple(map(int, text.split(" of "))) for text in part.least.values()]
    shares = [shown / of for shown, of in counts]
    assert shares == sorted(shares)
    assert sum(of - shown for shown, of in counts) == part.tested - part.killed


def test_a_condition_of_no_compared_case_shows_nothing():
    chosen = [case for case in cases() if "more than 32 tokens" not in fulfilled(case)]
    found = conditional_faults(chosen, ALL)
    assert found is not None
    assert found.least["more than 32 tokens"].startswith("0 of ")


@pytest.mark.parametrize(
    ("chosen", "faults"),
    [([generated("other", 1)], ALL), (cases()[:3], {*ALL, "M999"}), ([], ALL)],
)
def test_what_the_table_does_not_hold_is_not_counted(chosen, faults):
    assert conditional_faults(chosen, faults) is None
