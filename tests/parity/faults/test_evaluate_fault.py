"""Evaluating faults: the parts together are the reference, and what they share is not spoilt."""

from contextlib import suppress

import pytest

from sdpo.fixtures import packaged_family
from sdpo.parity.cases.checked_call import BrokenGradientError, CandidateError, same_bits
from sdpo.parity.cases.loss_case import loss_cases, transcription_trace
from sdpo.parity.faults.catalogue import LOSS_FAULTS
from sdpo.parity.faults.evaluate_fault import cached_start, fault_trace
from sdpo.parity.faults.reference_parts import REFERENCE, with_exchanged
from tests.helpers.fault_harness import some_cases


def departures(changes, family):
    """Where the parts, some of them exchanged, are not the live transcription to the bit."""
    found = []
    for case in loss_cases(family):
        expected = transcription_trace(case, case.recorded.get("support.indices"))
        actual = fault_trace(changes, case)
        assert actual.keys() == expected.keys() - {"loss_mask"}
        found += [(case.id, n) for n in actual if not same_bits(actual[n], expected[n])]
    return found


def test_without_a_fault_the_parts_are_the_reference_to_the_bit():
    assert departures({}, packaged_family("loss")) == []


def test_one_bit_in_one_part_is_seen():
    changes = {"aggregate": lambda state: REFERENCE["aggregate"](state) * (1 + 2**-23)}
    assert ("P-L001", "aggregate") in departures(changes, some_cases(("P-L001",)))


def departures_after(parts_of_faults):
    """Where the reference's parts depart from it once some faults have been evaluated."""
    family = some_cases(("P-L001", "P-L018", "P-L030"))
    for parts in parts_of_faults:
        for case in loss_cases(family):
            with suppress(CandidateError, BrokenGradientError):
                fault_trace(parts, case)
    return departures({}, family)


def spoiling(state):
    state.student_log_probs.data.add_(1)
    return REFERENCE["loss_mask"](state)


def test_faults_leave_what_they_share_as_it_was():
    """Those behind the log-probs start from the same tensors."""
    assert departures_after(fault.parts for fault in LOSS_FAULTS) == []
    try:
        assert departures_after([{"loss_mask": spoiling}]) != []
    finally:
        cached_start.cache_clear()


def test_a_name_that_is_no_part_is_refused():
    with pytest.raises(KeyError, match="are no parts"):
        with_exchanged({"nonsense": lambda state: None})
