"""A value of another dtype is no match, for those candidates that must have the reference's.

Each cast is planted in a copy: on a single value, so that nothing else tells of it, and in a
module, so that what follows from it must not be named first.
"""

from functools import cache

import pytest
import torch

from sdpo.fixtures import packaged_family
from sdpo.loss import aggregate, self_distillation
from sdpo.parity.audit.run_loss_cases import judge_loss_case
from sdpo.parity.candidates.implementations import Own, Transcription
from sdpo.parity.candidates.live_verl import LiveVerl
from sdpo.parity.cases.loss_case import loss_case, transcription_trace
from sdpo.parity.compare.loss_stages import stage_of
from sdpo.parity.compare.statuses import Status
from sdpo.parity.compare.value_dtypes import other_dtypes
from sdpo.parity.compare.verdict import CaseResult
from sdpo.parity.recorded import updates
from sdpo.parity.recorded.golden_updates import golden_names
from sdpo.reference import loss as reference

LOSSES, UPDATES = packaged_family("loss"), packaged_family("update")
TOPK_TAIL, ROWS = "P-L002", "P-L072"  # float32; bfloat16 with a mean of rows
NAMES = [
    *(f"{stage}.{side}" for stage in ("log_probs", "support") for side in ("student", "teacher")),
    "support.indices",
    "tail.student",
    "tail.teacher",
    "divergence",
    "importance",
    "aggregate",
    "gradient",
]
UPDATE_NAMES = {
    "u0.mb0.student_log_probs": "log_probs",
    "u0.mb0.student_topk_indices": "support",
    "u0.mb0.teacher_topk_log_probs": "support",
    "u0.mb0.per_token_loss": "importance",
    "u0.mb0.loss": "aggregate",
    "u0.mini0.grad.lm_head.weight": "accumulate",
    "u0.actor.lm_head.weight": "optimizer",
    "u0.teacher.lm_head.weight": "teacher_update",
}


@cache
def case(case_id):
    return loss_case(LOSSES.case(case_id))


def audited(candidate, case_id: str) -> CaseResult:
    return judge_loss_case(candidate, case(case_id))


@pytest.mark.parametrize("kind", [Own, Transcription])
def test_every_recorded_dtype_is_had(kind):
    """All 148 cases, at every stage."""
    candidate, compared = kind(), 0
    for golden in LOSSES:
        given = case(golden.id)
        actual = candidate.trace(given)
        expected = transcription_trace(given, given.recorded.get("support.indices"))
        expected |= given.recorded
        compared += sum(stage_of(name) is not None and name in expected for name in actual)
        assert other_dtypes(candidate, golden.id, actual, expected, stage_of) == []
    assert compared > 1000


@pytest.mark.parametrize("kind", [Own, Transcription])
@pytest.mark.parametrize("name", NAMES)
def test_a_cast_of_one_value_is_a_divergence_at_its_stage(kind, name):
    """To float64 or int32, which changes no number: nothing else could tell."""
    to = torch.int32 if name == "support.indices" else torch.float64

    class Cast(kind):
        def trace(self, case):
            trace = dict(super().trace(case))
            return trace | {name: trace[name].to(to)}

    result = audited(Cast(), TOPK_TAIL)
    divergent = [c for c in result.comparisons if c.status == Status.DIVERGENT]
    assert [(c.stage, c.effect) for c in divergent] == [(stage_of(name), "dtype")]
    assert result.status == Status.DIVERGENT
    assert f"{name} is {str(to).removeprefix('torch.')}, expected" in divergent[0].note


def rounded(function, dtype):
    return lambda *args, **kwargs: function(*args, **kwargs).to(dtype)


def test_casts_in_modules_are_named_first_where_they_are(monkeypatch):
    assert audited(Own(), ROWS).status in (Status.MATCH, Status.PASS)
    monkeypatch.setattr(
        self_distillation, "aggregate", rounded(aggregate.aggregate, torch.bfloat16)
    )
    assert audited(Own(), ROWS).first_stage == "aggregate"
    monkeypatch.setattr(
        self_distillation, "importance", rounded(self_distillation.importance, torch.float64)
    )
    assert audited(Own(), TOPK_TAIL).first_stage == "importance"


@pytest.mark.parametrize(
    ("function", "stage"),
    [
        ("log_probs_from_logits", "log_probs"),
        ("add_tail", "tail"),
        ("divergence", "divergence"),
        ("agg_loss", "aggregate"),
    ],
)
def test_casts_in_the_transcription_are_named_first_where_they_are(monkeypatch, function, stage):
    monkeypatch.setattr(reference, function, rounded(getattr(reference, function), torch.float64))
    trace = Transcription().trace(case(TOPK_TAIL))
    monkeypatch.undo()  # what judges it is the transcription too

    class Faulty(Transcription):
        def trace(self, case):
            return trace

    result = audited(Faulty(), TOPK_TAIL)
    assert result.status == Status.DIVERGENT
    assert result.first_stage == stage


@pytest.mark.parametrize("name", UPDATE_NAMES)
def test_a_cast_in_an_update_is_a_divergence_at_its_stage(name):
    golden = UPDATES.case("P-U001")

    class Cast(Transcription):
        def update_trace(self, family, golden, tensors):
            trace = super().update_trace(family, golden, tensors)
            (place,) = (place for place, known in golden_names(trace).items() if known == name)
            value = trace[place]
            trace[place] = value.double() if value.is_floating_point() else value.int()
            return trace

    result = updates.run_case(Cast(), UPDATES, golden)
    divergent = [c for c in result.comparisons if c.effect == "dtype"]
    assert [(c.stage, c.status) for c in divergent] == [(UPDATE_NAMES[name], Status.DIVERGENT)]
    assert result.first_stage == UPDATE_NAMES[name]


def test_a_stranger_may_return_what_it_likes():
    class Stranger(Own):
        dtypes_are_judged = False

        def trace(self, case):
            trace = dict(super().trace(case))
            return trace | {"aggregate": trace["aggregate"].double()}

    statuses = {c.status for c in audited(Stranger(), TOPK_TAIL).comparisons}
    assert statuses <= {Status.MATCH, Status.PASS, Status.NOT_COVERED}
    assert LiveVerl.dtypes_are_judged
