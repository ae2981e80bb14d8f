"""First means first: in time within a case, by what is certain between cases, never behind."""

from dataclasses import replace
from itertools import product

import pytest
from msgspec import structs

from sdpo.parity.cases.stages import NAMES
from sdpo.parity.compare.comparison import Comparison
from sdpo.parity.compare.first_in_time import deciding, first_observed
from sdpo.parity.compare.statuses import Status
from sdpo.parity.compare.verdict import CaseResult
from sdpo.parity.explain.explanations import fewest, in_all, ranked
from sdpo.parity.explain.first_departure import Departure, held_before
from sdpo.parity.render.html import html_report
from sdpo.parity.render.markdown import markdown_report
from sdpo.parity.render.text import first_line
from sdpo.parity.report.document import Evidence, Policy, assemble
from sdpo.parity.report.rejudge import regate
from sdpo.parity.report.run_report import InconsistentReportError
from tests.helpers import run_documents


def off(stage, place=(), status=Status.DIVERGENT, **more):
    return Comparison(stage, status, place=place, **more)


def case(id_, *comparisons, family="update"):
    return CaseResult(id_, family, (), [replace(c, case=id_) for c in comparisons])


# --- within a case ---------------------------------------------------------------------------


def test_what_came_first_in_time_is_first_whatever_its_number():
    late, early = off("log_probs", (1, 0, 0)), off("teacher_update", (0, 0, 1))
    assert case("U", late, early).first_stage == "teacher_update"
    same_place = off("support", (0, 0, 1))
    assert case("U", late, early, same_place).first_stage == "support"
    assert case("U", late, replace(early, status=Status.MATCH)).first_stage == "log_probs"


def test_what_is_inherited_is_not_first():
    own, follows = off("aggregate", (0, 0, 1)), off("importance", (0, 0, 0), inherits="aggregate")
    assert case("T", own, follows).first_stage == "aggregate"


def test_the_note_of_a_case_is_that_of_its_first_departure():
    late = off("log_probs", (1, 0, 0), note="late")
    early = off("optimizer", (0, 0, 0), note="early")
    assert case("U", late, early).row()["note"] == "early"


# --- between cases ---------------------------------------------------------------------------


def test_a_probe_does_not_headline_where_a_scenario_departs():
    scenario = case("T01", off("teacher_update", (0, 0, 0)), family="trainer")
    probe = case("C06", off("log_probs"), family="probe")
    assert first_observed([scenario, probe]) == "teacher_update"
    assert deciding([scenario, probe]) == [scenario]
    held = case("T01", off("teacher_update", (0, 0, 0), Status.MATCH), family="trainer")
    assert first_observed([held, probe]) == "log_probs", "a probe alone"
    assert first_observed([held]) is None


def test_what_may_follow_from_weights_gives_way_to_a_departure_of_these_weights():
    second_step = case("U14", off("log_probs", (0, 1, 0), may_follow=("optimizer",)))
    weights, teacher = case("U30", off("optimizer")), case("U01", off("teacher_update"))
    assert first_observed([second_step, weights]) == "optimizer"
    assert first_observed([second_step, teacher]) == "log_probs", "it cannot follow from that"
    assert first_observed([second_step]) == "log_probs", "nothing else is known"
    assert first_observed([second_step, weights, case("U1", off("log_probs"))]) == "log_probs"


def test_the_report_counts_first_departures_and_marks_what_may_follow():
    results = [
        case(
            "T01", off("log_probs", (1, 0, 0)), off("teacher_update", (0, 0, 0)), family="trainer"
        ),
        case("C06", off("log_probs", status=Status.ERROR), family="probe"),
    ]
    evidence = Evidence("mine", "trainer", (), results)
    run = assemble(evidence, Policy(), lambda verdict, observed: Departure(observed))
    counts = {row.name: row.first_in for row in run.stages if row.first_in}
    assert counts == {"teacher_update": 1}
    assert [row.may_follow for row in run.cases] == [False, True]
    assert run.first_stage == run.first_observed == "teacher_update"


def test_a_report_judged_again_keeps_time():
    results = [case("U", off("log_probs", (1, 0, 0)), off("optimizer", (0, 1, 0)))]
    evidence = Evidence("mine", "implementation", (), results)
    run = assemble(evidence, Policy(), lambda verdict, observed: Departure(observed))
    assert regate(run, Policy()) == run
    assert run.cases[0].comparisons[1].place == [0, 1, 0]


# --- inferred --------------------------------------------------------------------------------


def test_an_inferred_stage_is_never_behind_the_observed_one():
    shapes = ((), ("log_probs", "importance", "aggregate", "gradient"), NAMES)
    for observed, suspected, shown in product(NAMES, NAMES, shapes):
        found = Departure(observed, suspected, held_before(observed, shown))
        assert found.stage is not None
        assert NAMES.index(found.stage) <= NAMES.index(observed)
        assert found.inferred or found.stage == observed


def test_nothing_is_inferred_before_a_stage_that_was_seen_to_hold():
    shown = ("log_probs", "importance", "aggregate", "gradient")
    seen = Departure("aggregate", "divergence", held_before("aggregate", shown))
    assert (seen.stage, seen.inferred) == ("aggregate", False)
    between = Departure("importance", "divergence", held_before("importance", shown))
    assert (between.stage, between.inferred) == ("divergence", True)
    gradient = Departure("gradient", "importance", held_before("gradient", shown))
    assert (gradient.stage, gradient.inferred) == ("importance", True), "of any stage"


def test_a_report_whose_first_stage_is_behind_the_observed_one_is_refused():
    run = run_documents.divergent()
    run.check()
    for wrong in ({"first_stage": "gradient"}, {"first_stage_inferred": False}):
        with pytest.raises(InconsistentReportError, match="first stage"):
            structs.replace(run, **wrong).check()


# --- explanations ----------------------------------------------------------------------------


def test_explanations_are_ordered_by_their_cases_and_small_ones_told_apart():
    cases = {"one": ["T39"], "most": [f"T{n}" for n in range(39)], "some": ["T1"] * 2 + ["T2"]}
    explanations = ranked(cases | {"quarter": [f"T{n}" for n in range(10)]}, 40)
    assert [(row.fault, row.explains, row.also) for row in explanations] == [
        ("most", 39, False),
        ("quarter", 10, False),
        ("some", 2, True),
        ("one", 1, True),
    ]
    assert {row.of for row in explanations} == {40}


def test_few_faults_are_chosen_with_all_of_their_cases():
    alternatives = {"T1": ["a", "b"], "T2": ["b"], "T3": [], "T4": ["c", "b"], "T5": ["c"]}
    assert fewest(alternatives) == {"b": {"T1", "T2", "T4"}, "c": {"T4", "T5"}}


def test_a_fault_that_gives_some_values_of_a_stage_does_not_explain_it():
    tried = {"teacher_update": [["M110", "M25"], ["M25"]], "log_probs": [["M116"]], "optimizer": []}
    assert in_all(tried) == ["M25", "M116"]
    assert in_all({"accumulate": [["M11"], []]}) == []


def test_a_report_whose_explanations_do_not_add_up_is_refused():
    run = run_documents.divergent()
    with pytest.raises(InconsistentReportError, match="explanations"):
        structs.replace(run, explained_by=["M07 mean over masked rows"]).check()
    wrong = [structs.replace(row, explains=2) for row in run.explanations]
    with pytest.raises(InconsistentReportError, match="cases of M07"):
        structs.replace(run, explanations=wrong).check()


def test_each_rendering_says_how_much_an_explanation_explains():
    run = run_documents.divergent()
    line = first_line(run)
    assert "explained_by=M07 mean over masked rows (24 of 25); also M15 | mask (1 of 25)" in line
    for report in (markdown_report(run), html_report(run)):
        assert "(24 of 25 diverging cases); also, in fewer: " in report


def test_the_first_line_shows_what_was_introduced_and_not_what_followed():
    run = run_documents.divergent()
    place = NAMES.index("aggregate")
    introduced = {**(run.stages[place].worst or {}), "actual": 0.5, "expected": 0.25}
    run = run_documents.changed(run, "stages", place, "introduced", value=introduced)
    assert "introduced=0.25 " in first_line(run)
