"""Metamorphic relations: each is kept by our implementation, and a planted violation is reported.

What the reference itself violates is listed here, so that it cannot change unseen.
"""

from dataclasses import replace

import pytest
import torch

from sdpo.loss.self_distillation import self_distillation_loss
from sdpo.parity.audit.audit import judge
from sdpo.parity.audit.request import Request
from sdpo.parity.candidates.implementations import Own, Transcription
from sdpo.parity.candidates.log_prob_functions import FromLogProbs
from sdpo.parity.candidates.loss_functions import FromLogits
from sdpo.parity.candidates.stage_functions import StageFunctions
from sdpo.parity.compare.evaluated_case import evaluate_case
from sdpo.parity.faults.catalogue import BY_ID
from sdpo.parity.faults.evaluate_fault import loss_from_log_probs, loss_from_logits
from sdpo.parity.relations.catalogue import RELATION_NAMES, RELATIONS
from sdpo.parity.relations.check import (
    FROM_LOG_PROBS,
    NOTHING_CHANGED,
    PARTIAL,
    SAME_GIVEN,
    invariants,
    outcome_of,
    row_of,
)
from sdpo.parity.relations.received_inputs import differences
from sdpo.parity.relations.transformed_cases import MAKERS, Claim, TransformedCase, bases, claims_of
from sdpo.settings.determinism import deterministic

BY_NAME = {relation.name: relation for relation in RELATIONS}
SPLIT = {
    "usual settings",
    "full vocabulary, token-mean",
    "sampled, normed sums",
}
BROKEN_BY_REFERENCE = {
    "micro-batch split": SPLIT,
    "process split": SPLIT,
    "gradient accumulation": SPLIT,
    "extra padding": {"sampled, normed sums; padded right"},
    "nothing counts": {
        f"full vocabulary, {mode}; {why}"
        for mode in ("seq-mean-token-mean", "seq-mean-token-sum")
        for why in ("no signal", "no tokens")
    },
    "continuity in alpha": {
        f"alpha {end}, top-k {topk}" for end in (0, 1) for topk in ("None", "6")
    },
}
ROWWISE = ("student_logits", "teacher_logits", "responses", "response_mask")
OURS_IS_FINITE = "nothing counts"


@pytest.fixture(autouse=True)
def fixed():
    with deterministic():
        yield


def judged(function, name):
    return row_of(FromLogits("planted", function), BY_NAME[name])


def by_column(student, teacher, responses, mask, *, config, **rest):
    """Weights tokens by their column, padding included."""
    loss = self_distillation_loss(student, teacher, responses, mask, config=config, **rest)
    columns = torch.arange(mask.shape[1]) * mask
    return loss * (1 + columns.sum() / 100)


def by_row(student, teacher, responses, mask, *, config, **rest):
    """Adds something that depends on a row's number."""
    loss = self_distillation_loss(student, teacher, responses, mask, config=config, **rest)
    return loss + 1e-3 * student[0].mean()


def by_entry(student, teacher, responses, mask, *, config, **rest):
    """Adds something that depends on an entry's number."""
    loss = self_distillation_loss(student, teacher, responses, mask, config=config, **rest)
    return loss + 1e-3 * (student[..., 0] * mask).sum()


def continuous(student_logits, teacher_logits, responses, response_mask, *, alpha, **rest):
    """Between both directions: continuous at the ends of alpha, unlike the reference."""
    s, t = student_logits.log_softmax(-1), teacher_logits.detach().log_softmax(-1)
    both = (1 - alpha) * (t.exp() * (t - s)) + alpha * (s.exp() * (s - t))
    return (both.sum(-1) * response_mask).sum() / response_mask.sum()


def test_names_are_distinct_and_all_are_in_the_report():
    assert len(set(RELATION_NAMES)) == len(RELATION_NAMES)
    assert [row.name for row in invariants(Own())] == list(RELATION_NAMES)


def test_what_a_candidate_alone_violates_is_a_failing_case_of_the_audit():
    candidate = FromLogits("planted", by_row)
    runs = [
        judge(
            Request("planted", ("recorded",)),
            candidate,
            [],
            [],
            lambda *_: None,
            isolation=isolation,
        )
        for isolation in (True, False)
    ]
    assert [row.name for row in runs[0].invariants] == list(RELATION_NAMES)
    violated = {row.name for row in runs[0].invariants if row.status == "VIOLATED"}
    assert "row order" in violated
    failing = {case.id.removeprefix("relation: "): case for case in runs[0].failing_cases}
    assert failing.keys() == violated
    assert {case.family for case in failing.values()} == {"relation"}
    assert (runs[0].verdict, runs[1].verdict) == ("DIVERGENT", "INCONCLUSIVE")
    assert "is violated: " in failing["row order"].note


@pytest.mark.parametrize("name", RELATION_NAMES)
def test_ours_keeps_each_relation_that_the_reference_keeps(name):
    row = row_of(Own(), BY_NAME[name])
    inherited = name in BROKEN_BY_REFERENCE and name != OURS_IS_FINITE
    assert row.status == ("INHERITED" if inherited else "HOLDS")
    assert set(row.cases) <= {"HOLDS", "INHERITED"}


@pytest.mark.parametrize("name", RELATION_NAMES)
def test_what_the_reference_violates_is_known(name):
    relation = BY_NAME[name]
    found = {
        claim.case.id: outcome_of(Transcription(), relation, claim).status
        for claim in claims_of(relation.name)
        if relation.kind != "teacher"
    }
    broken = {case for case, status in found.items() if status == "VIOLATED"}
    assert broken == BROKEN_BY_REFERENCE.get(name, set())
    assert set(found.values()) <= {"VIOLATED", "HOLDS"}
    row = row_of(Transcription(), relation)
    assert row.of_reference == ("VIOLATED" if broken else "HOLDS")
    assert row.status == ("INHERITED" if broken else "HOLDS")


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("micro-batch split", "M79"),
        ("process split", "M87"),
        ("gradient accumulation", "M89"),
        ("extra padding", "M83"),
        ("row order", "M10"),
        ("masked row", "M07"),
        ("nothing counts", "M16"),
        ("logit shift", "M36"),
        ("equal sides", "M05"),
        ("never negative", "M20"),
        ("teacher gets no gradient", "M21"),
    ],
)
def test_a_known_fault_violates_the_relation(name, fault):
    row = judged(loss_from_logits(BY_ID[fault].parts), name)
    assert row.status == "VIOLATED"
    if name == "teacher gets no gradient":
        assert (row.worst, "teacher" in row.note) == (None, True)
    else:
        assert row.worst is not None
        assert float(row.worst.used) > 1


@pytest.mark.parametrize(
    ("name", "function"),
    [("padding side", by_column), ("row order", by_row), ("vocabulary order", by_entry)],
)
def test_a_planted_dependence_violates_the_relation(name, function):
    row = judged(function, name)
    assert row.status == "VIOLATED"
    assert row.cases == {"VIOLATED": len(claims_of(name))}


def test_a_continuous_divergence_is_told_from_the_reference():
    row = judged(continuous, "continuity in alpha")
    assert row.cases == {"HOLDS": 4}
    assert row.of_reference == "VIOLATED"


def test_a_candidate_is_not_blamed_where_the_reference_breaks_a_relation_too():
    whole = judged(loss_from_logits({}), "micro-batch split")
    assert whole.cases == {"INHERITED": 3, "HOLDS": 3}
    summed = judged(loss_from_logits(BY_ID["M87"].parts), "micro-batch split")
    assert summed.status == "VIOLATED"
    assert summed.worst is not None
    assert summed.worst.case not in SPLIT


def test_what_cannot_be_tested_says_why():
    log_probs = FromLogProbs("planted", loss_from_log_probs({}))
    rows = {row.name: row for row in invariants(log_probs)}
    untested = {name for name, row in rows.items() if row.status == "NOT_COVERED"}
    assert untested == {"logit shift", "teacher gets no gradient"}
    assert {rows[name].note for name in untested} == {FROM_LOG_PROBS}

    class Stages:
        @staticmethod
        def aggregate(per_token_loss, loss_mask, loss_agg_mode):
            return per_token_loss.sum()

    rows = invariants(StageFunctions("stages", Stages()))
    assert {(row.status, row.note) for row in rows} == {("NOT_COVERED", PARTIAL)}


CHANGED = {
    "micro-batch split": set(ROWWISE),
    "process split": set(ROWWISE),
    "gradient accumulation": set(ROWWISE),
    "padding side": set(ROWWISE),
    "extra padding": set(ROWWISE),
    "row order": set(ROWWISE),
    "logit shift": {"student_logits", "teacher_logits"},
    "vocabulary order": {"student_logits", "teacher_logits", "responses"},
    "continuity in alpha": {"config"},
}
"""What each relation changes in all of its claims; the others compare with zero, or look inside."""


@pytest.mark.parametrize("name", CHANGED)
def test_each_relation_changes_what_a_loss_is_given(name):
    for claim in claims_of(name):
        assert claim.parts
        for part in claim.parts:
            found = differences(None, claim.case, part.case)
            optional = {"old_log_probs", "rollout_is_weights"}
            assert found - optional == CHANGED[name], part.case.id


def test_a_row_that_does_not_count_is_removed_whole():
    for claim in claims_of("masked row"):
        (part,) = claim.parts
        assert differences(None, claim.case, part.case) >= set(ROWWISE)
        kept = claim.case.response_mask.any(1)
        if claim.case.self_distillation_mask is not None:
            kept &= claim.case.self_distillation_mask != 0
        assert kept.tolist() == [True, False, True, True]


def test_what_is_compared_with_zero_has_its_premise():
    assert {name for name in RELATION_NAMES if name not in CHANGED} == {
        *("masked row", "nothing counts", "equal sides", "never negative"),
        "teacher gets no gradient",
    }
    for claim in claims_of("nothing counts"):
        assert not claim.case.loss_mask.any()
    for claim in claims_of("equal sides"):
        assert claim.case.student_logits.equal(claim.case.teacher_logits)
        assert claim.case.loss_mask.any()
    for claim in claims_of("never negative"):
        assert claim.case.loss_mask.sum() == 1
        assert not claim.case.student_logits.equal(claim.case.teacher_logits)


def test_a_change_that_changes_nothing_is_an_error(monkeypatch):
    case = bases()[0]
    monkeypatch.setitem(
        MAKERS, "idle", lambda: [Claim(case, (TransformedCase(replace(case, id="b")),))]
    )
    row = row_of(Own(), replace(BY_NAME["row order"], name="idle"))
    assert (row.status, row.note) == ("ERROR", NOTHING_CHANGED)


def test_log_probs_on_a_support_do_not_know_the_numbering_of_the_vocabulary():
    row = row_of(FromLogProbs("planted", loss_from_log_probs({})), BY_NAME["vocabulary order"])
    assert row.cases == {"HOLDS": 2, "NOT_COVERED": 4}
    (claim,) = [c for c in claims_of("vocabulary order") if c.case.id == "usual settings"]
    found = outcome_of(
        FromLogProbs("p", loss_from_log_probs({})), BY_NAME["vocabulary order"], claim
    )
    assert (found.status, found.note) == ("NOT_COVERED", SAME_GIVEN)


def test_a_candidate_that_fails_or_has_no_gradient_says_so():
    def raises(student_logits, teacher_logits, responses, response_mask):
        raise RuntimeError("boom")

    row = judged(raises, "row order")
    assert (row.status, row.worst) == ("ERROR", None)
    assert "boom" in row.note

    def detached(*args, **kwargs):
        return self_distillation_loss(*args, **kwargs).detach()

    row = judged(detached, "row order")
    assert row.worst is not None
    assert (row.status, row.worst.value) == ("HOLDS", "loss")
    assert "no graph" in row.note
    assert judged(detached, "teacher gets no gradient").status == "NOT_COVERED"


def test_no_case_has_an_open_choice_and_shifts_are_exact():
    for relation in RELATIONS:
        for claim in claims_of(relation.name):
            for case in (claim.case, *(part.case for part in claim.parts)):
                truth = evaluate_case(case).truth
                assert (truth.ties.certain == truth.ties.possible).all(), case.id
    for case in bases():
        assert ((case.student_logits + 4) - 4).equal(case.student_logits)
        assert ((case.teacher_logits - 8) + 8).equal(case.teacher_logits)
