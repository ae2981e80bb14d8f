"""Documented improvements are excused for every candidate, and only with the definition's value."""

import pytest
import torch

from sdpo.loss.aggregate import aggregate
from sdpo.loss.divergence import divergence
from sdpo.parity.audit import audit
from sdpo.parity.candidates.loss_functions import FromLogits
from sdpo.parity.faults.evaluate_fault import loss_from_logits
from sdpo.parity.faults.reference_parts import divergence as plain
from sdpo.parity.render.html import html_report
from sdpo.parity.render.markdown import markdown_report
from sdpo.parity.render.text import text_report
from sdpo.parity.report.declared_deviations import Deviation
from tests.helpers.fault_harness import run_of, some_cases

ZERO = ("P-L126", "P-L127", "P-L129", "P-L130")
INFINITE = ("P-L128", "P-L131")
EMPTY = ("P-L074", "P-L075", "P-L080")
PADDING = ("P-L135", "P-L136", "P-L140")


def guarded(run):
    """The divergence as the definition says, 0 · log 0 = 0."""
    return divergence(run.student_support, run.teacher_support, alpha=run.config.alpha)


def finite_as(value):
    """NaN replaced by a number."""
    return lambda run: torch.nan_to_num(plain(run), nan=value)


def floored_teacher(floor):
    def part(run):
        on = run.teacher_support
        run.teacher_support = on.clamp(min=floor)
        value = plain(run)
        run.teacher_support = on
        return value

    return part


def weighed(run):
    """The aggregate that places of weight zero do not reach."""
    return aggregate(run.token_losses, run.loss_mask, loss_agg_mode=run.config.loss_agg_mode)


def answering(value):
    """The mean of no rows is a number."""
    return lambda run: (
        torch.nan_to_num(weighed(run), nan=value)
        if run.loss_mask.any()
        else (run.student_logits.sum() * 0 + value)
    )


def loss(name, **parts):
    return FromLogits(f"{name}.py:loss", loss_from_logits(parts))


def shown(run):
    return {row.id: row.cases for row in run.improvements}


def test_a_probability_of_zero_is_excused_whoever_the_candidate_is():
    run = run_of(loss("any", divergence=guarded), some_cases(ZERO))
    assert (run.verdict, run.exit_code) == ("DECLARED", 0)
    assert shown(run) == {"D01": list(ZERO)}
    (row,) = run.improvements
    assert "0 · log 0 = 0" in row.reason
    for text in (text_report(run), markdown_report(run), html_report(run)):
        assert row.reason in text
        assert "D01" in text
        assert "built-in" in text


def test_the_exceptions_hold_besides_a_ledger_of_the_users_own():
    """An entry may say the same again, and one that says something else is still judged."""
    fields = {"candidates": ("*",), "stages": ("aggregate",), "reason": "as agreed", "tag": "*"}
    same = Deviation(id="U1", effect="finite_where_reference_is_not", **fields)
    other = Deviation(id="U2", effect="nan", **fields)
    judged = {}
    for entry in (same, other):
        request, progress = audit.Request("any.py:loss"), lambda *_: None
        candidate, family = loss("any", divergence=guarded), some_cases(ZERO)
        judged[entry.id] = audit.judge(
            request, candidate, [family], [entry], progress, isolation=False
        )
    assert judged["U1"].verdict == "DECLARED"
    assert judged["U1"].reasons == []
    assert shown(judged["U1"]) == {"D01": list(ZERO)}
    assert "U2 no longer shows" in judged["U2"].reasons[0]


@pytest.mark.parametrize("value", [0.0, 123.0])
def test_finite_by_any_other_value_is_no_excuse(value):
    run = run_of(loss("any", divergence=finite_as(value)), some_cases(ZERO))
    assert (run.verdict, run.first_observed) == ("DIVERGENT", "aggregate")
    assert shown(run) == {}
    assert all("the definition gives 0." in case.note for case in run.cases)


def test_a_floor_under_the_teacher_is_judged_by_what_it_gives():
    """Far down it gives the definition's value, nearer another; infinity stays infinite."""
    deep = run_of(loss("deep", divergence=floored_teacher(-1e4)), some_cases(ZERO))
    assert deep.verdict == "DECLARED"
    near = run_of(loss("near", divergence=floored_teacher(-5.0)), some_cases(ZERO))
    assert {case.status for case in near.cases} == {"DIVERGENT"}
    definition = run_of(loss("deep", divergence=floored_teacher(-1e4)), some_cases(INFINITE[:1]))
    assert definition.verdict == "DIVERGENT"
    assert "finite" in definition.cases[0].note


def test_an_empty_batch_is_zero_and_nothing_else():
    right = run_of(loss("zero", aggregate=answering(0.0)), some_cases(EMPTY))
    assert (right.verdict, shown(right)) == ("DECLARED", {"D03": list(EMPTY)})
    wrong = run_of(loss("one", aggregate=answering(1.0)), some_cases(EMPTY))
    assert {case.status for case in wrong.cases} == {"DIVERGENT"}
    assert "the definition gives 0" in wrong.cases[0].note


def test_padding_is_excused_with_the_right_value_only():
    def scaled(run):
        return 1.001 * weighed(run)

    right = run_of(loss("padding", aggregate=weighed), some_cases(PADDING))
    assert right.cases[0].status in ("DECLARED", "DIVERGENT")
    assert "D02" in shown(right)
    wrong = run_of(loss("scaled", aggregate=scaled), some_cases(PADDING))
    assert {case.status for case in wrong.cases} == {"DIVERGENT"}
    for run in (right, wrong):
        found = [c for case in run.cases for c in case.comparisons]
        statuses = {c.status for c in found if c.stage == "aggregate"}
        assert statuses == {"DECLARED" if run is right else "DIVERGENT"}


def test_a_clamp_that_stops_at_nan_is_declared_and_a_lost_token_is_not():
    """The clamp of torch passes no gradient through NaN; a finite loss has no such excuse."""
    run = run_of(loss("clamp", divergence=lambda run: plain(run).clamp(min=0)), some_cases(ZERO))
    assert (run.verdict, shown(run)) == ("DECLARED", {"D04": list(ZERO)})

    def lost(run):
        value = guarded(run)
        return torch.where(plain(run).isnan(), value.detach(), value)

    run = run_of(loss("lost", divergence=lost), some_cases(ZERO))
    assert (run.verdict, run.first_observed) == ("DIVERGENT", "gradient")


def test_no_reason_is_a_candidates_name():
    """What holds for ours holds for a stranger: the same values give the same comparisons."""
    cases = some_cases((*ZERO, *EMPTY, *PADDING))
    ours, theirs = (
        run_of(loss(name, divergence=guarded, aggregate=weighed), cases)
        for name in ("sdpo", "stranger")
    )
    for mine, other in zip(ours.cases, theirs.cases, strict=True):
        assert repr(mine.comparisons) == repr(other.comparisons)
