"""The catalogue itself: complete, sourced, and built on parts that together are the reference."""

import re
from contextlib import suppress
from pathlib import Path

import pytest

from sdpo.fixtures import packaged_family
from sdpo.parity.audit.self_test import families
from sdpo.parity.cases.checked_call import BrokenGradientError, CandidateError, same_bits
from sdpo.parity.cases.loss_case import transcription_trace
from sdpo.parity.cases.stages import NAMES
from sdpo.parity.compare.evaluated_case import loss_cases
from sdpo.parity.compare.loss_stages import ORDER
from sdpo.parity.faults.catalogue import BY_ID, CATALOGUE, LOSS_FAULTS, collected
from sdpo.parity.faults.reference_parts import REFERENCE, Fault, fault_trace, kept_start_of, merged
from tests.helpers.fault_harness import some_cases

ROOT = Path(__file__).parents[3]


def test_every_reported_class_of_fault_has_an_entry():
    assert {f"M{number:02}" for number in range(1, 33)} <= BY_ID.keys()
    assert all(re.fullmatch(r"M\d\d+[a-z]?", fault.id) for fault in CATALOGUE)
    assert len({fault.name for fault in CATALOGUE}) == len(CATALOGUE)
    assert all(fault.source and fault.group and fault.stage in NAMES for fault in CATALOGUE)


def test_every_stage_of_the_loss_has_faults():
    assert {fault.stage for fault in LOSS_FAULTS} == set(ORDER)
    assert len(LOSS_FAULTS) >= 90


@pytest.mark.parametrize("fault", [f for f in CATALOGUE if not f.in_loss], ids=lambda f: f.id)
def test_a_fault_outside_the_loss_names_its_proof(fault):
    assert fault.proof
    if not fault.proof.startswith("none: "):
        file, name = fault.proof.split(": ", 1)
        assert name.split(";")[0] in (ROOT / file).read_text(encoding="utf-8")


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
    changes = {"aggregate": lambda run: REFERENCE["aggregate"](run) * (1 + 2**-23)}
    assert ("P-L001", "aggregate") in departures(changes, some_cases(("P-L001",)))


def departures_after(parts_of_faults):
    """Where the reference's parts depart from it once some faults have been evaluated."""
    family = some_cases(("P-L001", "P-L018", "P-L030"))
    for parts in parts_of_faults:
        for case in loss_cases(family):
            with suppress(CandidateError, BrokenGradientError):
                fault_trace(parts, case)
    return departures({}, family)


def spoiling(run):
    run.student_log_probs.data.add_(1)
    return REFERENCE["mask"](run)


def test_faults_leave_what_they_share_as_it_was():
    """Those behind the log-probs start from the same tensors."""
    assert departures_after(fault.parts for fault in LOSS_FAULTS) == []
    try:
        assert departures_after([{"mask": spoiling}]) != []
    finally:
        kept_start_of.cache_clear()


def test_the_self_test_has_an_empty_batch_for_each_way_of_averaging():
    empty = [case for case in loss_cases(families()[0]) if not case.loss_mask.any()]
    ways = {entry["config"]["loss_agg_mode"] for entry in packaged_family("loss").manifest["cases"]}
    assert {case.config.loss_agg_mode for case in empty} == ways


def test_unknown_parts_and_repeated_ids_are_refused():
    with pytest.raises(KeyError, match="are no parts"):
        merged({"nonsense": lambda run: None})
    with pytest.raises(ValueError, match="used twice"):
        collected([(LOSS_FAULTS[0], LOSS_FAULTS[0])])
    with pytest.raises(ValueError, match="unknown stages"):
        collected([(Fault("M99", "x", "y", "no stage", "design"),)])
