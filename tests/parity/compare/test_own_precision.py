"""A candidate is judged by the precision that it computes in, found by measurement."""

import numpy as np
import pytest
import torch

from sdpo.fixtures import packaged_family
from sdpo.parity.audit.run_loss_cases import run_loss_case
from sdpo.parity.candidates.log_prob_functions import FromLogProbs
from sdpo.parity.candidates.loss_functions import FromLogits
from sdpo.parity.cases.loss_case import loss_cases
from sdpo.parity.compare.own_precision import ACROSS, PLACES, measured, precision_rows, step_of
from sdpo.parity.explain.one_setting_only import departs_only
from sdpo.parity.faults.catalogue import BY_ID
from sdpo.parity.faults.evaluate_fault import loss_from_log_probs, loss_from_logits
from sdpo.parity.render.html import html_report
from sdpo.parity.render.junit import junit_report
from sdpo.parity.render.markdown import markdown_report
from sdpo.parity.render.sarif import sarif_report
from sdpo.parity.render.text import first_line, text_report
from tests.helpers.correct_variants import VARIANTS
from tests.helpers.fault_harness import run_of, some_cases

FAMILY = packaged_family("loss")
DOUBLE, SINGLE, LOW = (
    tuple(e["id"] for e in FAMILY.manifest["cases"] if e["config"]["dtype"] == dtype)
    for dtype in ("float64", "float32", "bfloat16")
)
SOME = (*DOUBLE[:14:3], *SINGLE[:44:9], *LOW[:14:3])


class Rounded(torch.autograd.Function):
    """The same values with a gradient rounded to bfloat16."""

    @staticmethod
    def forward(ctx, values):
        return values.clone()

    @staticmethod
    def backward(ctx, *gradients):
        return gradients[0].bfloat16().to(gradients[0].dtype)


def computed_in(dtype, parts=None, factor=1.0, gradient=lambda values: values):
    """The reference, some parts exchanged, on logits of another dtype."""
    inner = loss_from_logits(parts or {})

    def loss(student_logits, teacher_logits, responses, response_mask, **rest):
        sides = gradient(student_logits), teacher_logits
        if dtype is not None:
            sides = tuple(side.to(dtype) for side in sides)
        return inner(*sides, responses, response_mask, **rest) * factor

    return FromLogits("port.py:loss", loss)


def statuses(run):
    return {case.id: case.status for case in run.cases}


def told(run):
    return {(row.given, row.computes_in, row.judged_by) for row in run.precision}


def only_dtype(run):
    return run.departs_only.dtype if run.departs_only else None


def test_a_float32_loss_passes_and_every_rendering_says_how_it_was_judged():
    run = run_of(computed_in(torch.float32), some_cases((*DOUBLE, *LOW)))
    assert run.verdict == "PASS", run.message
    (row,) = run.precision
    assert (row.computes_in, row.judged_by) == ("float32", "float32")
    assert row.cases == row.of == len(DOUBLE)
    for render in (text_report, markdown_report, html_report, junit_report, sarif_report):
        assert "omputes in float32: 19 of 19 float64 cases" in render(run), render


def from_low_log_probs(
    response_mask,
    student_log_probs,
    teacher_log_probs,
    student_topk_log_probs=None,
    teacher_topk_log_probs=None,
    student_all_log_probs=None,
    teacher_all_log_probs=None,
    old_log_probs=None,
    **rest,
):
    """The reference on log-probs rounded to float32."""
    given = {name: value for name, value in locals().items() if name.endswith("_log_probs")}
    low = {name: value.float() for name, value in given.items() if value is not None}
    return loss_from_log_probs({})(response_mask=response_mask, **low, **rest)


def test_a_float32_loss_from_log_probs_passes():
    run = run_of(FromLogProbs("port.py:port", from_low_log_probs), some_cases(DOUBLE))
    assert run.verdict == "PASS", (run.message, statuses(run))
    assert told(run) == {("float64", "float32", "float32")}


@pytest.mark.parametrize("fault", ["M01", "M04", "M20", "M132"])
def test_a_fault_of_a_float32_loss_is_found_placed_and_named(fault):
    run = run_of(computed_in(torch.float32, BY_ID[fault].parts), some_cases(SOME))
    assert run.verdict == "DIVERGENT"
    assert BY_ID[fault].label in run.explained_by
    assert run.first_stage == BY_ID[fault].stage


def test_a_relative_error_of_1e_4_is_none_of_float32s_roundings():
    run = run_of(computed_in(torch.float32, factor=1 + 1e-4), some_cases(DOUBLE))
    assert run.verdict == "DIVERGENT"
    assert told(run) == {("float64", "float32", "float32")}
    rows = {row.name: row.relative for row in run.stages}
    assert rows["gradient"] == pytest.approx(1e-4, rel=0.2)


def test_half_precision_is_not_excused_in_any_dtype_above_it():
    candidate = computed_in(torch.bfloat16)
    for ids in (DOUBLE[:6], SINGLE[:6]):
        run = run_of(candidate, some_cases(ids))
        assert run.verdict == "DIVERGENT"
        assert set(statuses(run).values()) == {"DIVERGENT"}
        assert ("float64", "float32", "float32") not in told(run)
    for id_, low in ((DOUBLE[0], "half"), (SINGLE[0], "half")):
        (case,) = loss_cases(some_cases((id_,)))
        assert set(measured(candidate.trace, case).values()) == {torch.bfloat16}, low


def test_a_gradient_path_in_half_precision_is_found_beside_a_loss_in_float32():
    candidate = computed_in(torch.float32, gradient=Rounded.apply)
    (case,) = loss_cases(some_cases(DOUBLE[:1]))
    found = measured(candidate.trace, case)
    assert found == {"aggregate": torch.float32, "gradient": torch.bfloat16}
    for ids in (DOUBLE[:6], SINGLE[:6]):
        run = run_of(candidate, some_cases(ids))
        assert (run.verdict, run.first_observed) == ("DIVERGENT", "gradient")
    run = run_of(candidate, some_cases(DOUBLE[:6]))
    assert told(run) == {
        (*("float64", "float32"), "float32"),
        ("float64", "half precision", "float32"),
    }
    assert "computes its gradient in half precision where it is given float64" in text_report(run)


def test_a_gradient_alone_in_float32_beside_a_loss_in_float64_is_a_departure():
    class Single(Rounded):
        @staticmethod
        def backward(ctx, *gradients):
            return gradients[0].float().to(gradients[0].dtype)

    run = run_of(computed_in(None, gradient=Single.apply), some_cases(SOME))
    assert (run.verdict, run.first_observed) == ("DIVERGENT", "gradient")
    assert only_dtype(run) == "float64"
    assert told(run) == {("float64", "float32", "float64")}


def test_a_small_error_in_float64_is_no_lower_precision():
    """1e-8 of the value is below float32's roundings; only a float64 program can be so wrong."""
    run = run_of(computed_in(None, factor=1 + 1e-8), some_cases(SOME))
    assert (run.verdict, run.precision) == ("DIVERGENT", [])
    assert only_dtype(run) == "float64"
    assert run.departs_only is not None
    assert run.departs_only.cases == run.departs_only.of == 5
    assert "relative=1e-08 only=float64" in first_line(run)
    for render in (text_report, markdown_report, html_report):
        assert "eparts in float64 alone: in 5 of 5 such cases" in render(run)
        assert "1e-08 of the value" in render(run)


def test_a_departure_in_bfloat16_alone_is_named_and_one_everywhere_is_not():
    def only_low(run):
        value = VARIANTS["tokens gathered by index"]["aggregate"](run)
        return value * (2 if run.student_logits.dtype == torch.bfloat16 else 1)

    low = run_of(computed_in(None, {"aggregate": only_low}), some_cases(SOME))
    assert only_dtype(low) == "bfloat16"
    everywhere = run_of(computed_in(None, factor=2.0), some_cases(SOME))
    assert everywhere.departs_only is None
    one_dtype = run_of(computed_in(None, factor=2.0), some_cases(SINGLE[:3]))
    assert one_dtype.departs_only is None, "nothing of another dtype was compared"


def test_what_has_no_counterpart_in_another_dtype_is_not_blamed_on_its_own():
    ids = [e["id"] for e in FAMILY.manifest["cases"] if "teacher_neg_inf" in e["tags"]][:4]
    wrong = {"divergence": lambda run: run.student_support.sum(-1) * 0 + 1}
    tried = [(computed_in(None, wrong), case) for case in loss_cases(some_cases(tuple(ids)))]
    tried += [(computed_in(None), case) for case in loss_cases(some_cases(DOUBLE[:3]))]
    runs = [run_loss_case(candidate, case) for candidate, case in tried]
    observations = [run.observation for run in runs if run.observation is not None]
    assert departs_only(observations) is None
    assert precision_rows(observations) == []


def test_steps_of_a_curve_of_a_staircase_and_of_nothing():
    x = np.array(PLACES, dtype=float)
    assert np.dot(ACROSS, x**2) == np.dot(ACROSS, x) == sum(ACROSS) == 0
    assert step_of([np.array([1 + v, 2 - v * v]) for v in x]) == 0
    assert step_of([np.array([1.0, np.nan])] * 4) == np.inf
    assert step_of([np.array([np.float32(v / 3e7) + np.float32(1)]) for v in x]) > 0.05
