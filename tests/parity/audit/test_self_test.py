"""The choice of cases for the self-test, and which stage of a fault it accepts."""

from sdpo.fixtures import packaged_family
from sdpo.parity.audit.self_test import MutantRow, failures, families, subset


def row(stage: str | None, explained_by: list[str], shape: str = "logits") -> MutantRow:
    """A fault of the tail that was found at some stage."""
    return {
        "id": "M00",
        "name": "planted",
        "group": "",
        "stage": "tail",
        "source": "",
        "killed": True,
        "at_its_stage": stage == "tail",
        "verdicts": {shape: "DIVERGENT"},
        "stages": {shape: stage},
        "explained_by": {shape: explained_by},
        "bfloat16": "found",
    }


def test_a_fault_at_its_own_stage_passes():
    assert failures([row("tail", [])]) == []


def test_another_stage_passes_only_where_the_numbers_fit_another_fault_too():
    assert failures([row("support", ["M00 planted", "M99 other"])]) == []
    assert failures([row("support", ["M00 planted"])]) == ["M00 planted found at support, not tail"]
    assert failures([row("support", ["M98 one", "M99 other"])]) != []


def test_a_full_trace_must_name_the_stage_itself():
    assert failures([row("support", ["M00 planted", "M99 other"], "trace")]) != []


def test_the_chosen_cases_are_of_their_dtypes_and_few():
    single, low = families()
    assert {golden.config["dtype"] for golden in single} == {"float32", "float64"}
    assert {golden.config["dtype"] for golden in low} == {"bfloat16"}
    assert len(single) < len(packaged_family("loss")) / 2


def test_a_subset_keeps_the_order_of_its_family():
    assert [golden.id for golden in subset(packaged_family("loss"), ["P-L003", "P-L001"])] == [
        "P-L001",
        "P-L003",
    ]
