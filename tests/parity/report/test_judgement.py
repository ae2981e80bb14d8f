"""The sentences in front of a report."""

import pytest
from msgspec import structs

from sdpo.parity.explain.explanation_rows import Diagnosis, MostlyWhere
from sdpo.parity.render.text import front
from sdpo.parity.report.judgement import diagnosis
from sdpo.parity.report.report_rows import BundleRow, Rung, TrainerEffect
from sdpo.parity.truth.tolerances import TOLERANCES
from tests.helpers import run_documents

FOUND = Diagnosis(
    failing=3,
    compared=40,
    only_where="",
    shared={"more than 32 tokens": 2},
    gradient_ratio=4.0,
    gradient_cosine=0.5,
    relative=3.0,
    smallest="P-L001",
    settings="2 x 3 x 16, alpha 0",
    actual=4.0,
    expected=1.0,
)


def said(**changes):
    run = structs.replace(run_documents.divergent(), diagnosis=structs.replace(FOUND, **changes))
    return dict(diagnosis(run))


def test_a_pass_that_lacks_nothing_has_nothing_in_front():
    assert diagnosis(run_documents.passing()) == []


def test_the_lines_say_cause_weight_place_smallest_and_next():
    lines = said()
    assert lines["looks like"].startswith("M07 mean over masked rows (24 of 25)")
    assert lines["matters"] == (
        "gradient: norm x 4 (median), cosine 0.5 (lowest), largest difference 3 of the value"
    )
    assert lines["where"] == (
        "3 of 40 cases depart; all have more than 32 tokens (so do 2 of 37 others)"
    )
    assert lines["smallest"] == "P-L001 (2 x 3 x 16, alpha 0): loss 4, expected 1"
    assert lines["next"].startswith("compare tail with the reference (verl/trainer/")


def test_where_most_failing_cases_lie_is_said():
    where = said(mostly=MostlyWhere("not alpha 0.5", 2, 1))["where"]
    assert where == "3 of 40 cases depart: 2 of them where not alpha 0.5, as 1 of 37 others"


def test_a_condition_of_the_failing_cases_alone_is_said_so():
    where = said(only_where="autocast")["where"]
    assert where == "3 of 40 cases depart: those with autocast, and no other"


@pytest.mark.parametrize(("factor", "harmless"), [(0.99, True), (1.01, False)])
def test_what_float32_cannot_hold_is_called_harmless(factor, harmless):
    lines = said(relative=factor * TOLERANCES.harmless_share)
    assert ("harmless in training" in lines["matters"]) == harmless
    assert lines["next"].startswith("declare it") == harmless


def test_values_without_a_size_are_said_to_have_none():
    matters = said(relative=None, gradient_ratio=None, gradient_cosine=None)["matters"]
    assert matters == "no size: values that are not finite, or zero"


def test_what_is_lacking_is_one_line_and_the_next_step_of_no_verdict():
    run = structs.replace(run_documents.inconclusive(), lacks=["tail", "ratio"])
    lines = dict(diagnosis(run))
    assert lines["lacks"] == "tail, ratio"
    assert "--min-cases" in lines["next"]


def test_a_failure_is_to_be_repaired_first():
    assert dict(diagnosis(run_documents.raising()))["next"].startswith("repair what raises in 1 ")


def test_the_front_of_a_report_is_first_line_diagnosis_and_reasons():
    lines = front(run_documents.inconclusive()).splitlines()
    assert lines[0].startswith("INCONCLUSIVE candidate=")
    assert len(lines) == len(set(lines))


def test_commands_can_be_pasted(tmp_path):
    row = BundleRow("P-L001", "bundles/P-L001.zip", [1, 2, 3], [1, 1, 2], 1)
    run = structs.replace(run_documents.divergent(), bundles=[row], repro="sdpo audit loss.py:f")
    lines = dict(diagnosis(run, str(tmp_path / "my reports")))
    assert lines["replay"] == f"sdpo replay '{tmp_path}/my reports/bundles/P-L001.zip'"
    assert lines["if meant"] == "sdpo audit loss.py:f --write-ledger deviations.toml"
    assert dict(diagnosis(run))["replay"] == "sdpo replay bundles/P-L001.zip"


def test_variants_of_a_rung_stand_together():
    results = {"alpha 0": "departs", "alpha 1": "loss departs", "alpha 0.5": "holds"}
    ladder = [Rung("divergence", feature, result, None) for feature, result in results.items()]
    run = structs.replace(
        run_documents.divergent(), explained_by=[], explanations=[], ladder=ladder
    )
    assert dict(diagnosis(run))["looks like"] == (
        "no known fault; departs: alpha 0 / 1; holds: alpha 0.5"
    )


def test_without_figures_the_first_failing_case_stands_in_front():
    lines = dict(diagnosis(structs.replace(run_documents.divergent(), diagnosis=None)))
    assert "1 of 1 over budget" in lines["first case"]
    assert "matters" not in lines


def test_of_a_trainer_the_gradient_of_its_departures_is_said():
    effect = TrainerEffect("S1", "plain", ["tail"], [], 0.5, 0.25, *[None] * 6)
    same = structs.replace(effect, scenario="S2", introduced=[], gradient_ratio=1.0)
    run = structs.replace(run_documents.divergent(), diagnosis=None, trainer=[effect, same])
    lines = dict(diagnosis(run))
    assert lines["matters"] == (
        "gradient of the first step: norm x 0.5 to 0.5, cosine 0.25 (lowest)"
    )
    assert lines["where"] == "1 of 2 scenarios: S1"


def test_why_there_is_no_verdict_stands_in_front():
    run = structs.replace(run_documents.inconclusive(), reasons=["a", "b", "c"])
    assert diagnosis(run)[:2] == [("why", "a"), ("why", "b")]
