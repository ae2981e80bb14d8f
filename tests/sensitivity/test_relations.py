"""Metamorphic relations: each is kept by our implementation, and a planted violation is reported.

What the reference itself violates is listed here, so that it cannot change unseen.
"""

import pytest
import torch

from sdpo.determinism import deterministic
from sdpo.loss import self_distillation_loss
from sdpo.parity.adapters.callables import FromLogits, FromLogProbs
from sdpo.parity.adapters.own import Own, Transcription
from sdpo.parity.adapters.stage_functions import StageFunctions
from sdpo.parity.audit import Request, judge
from sdpo.parity.faults import BY_ID
from sdpo.parity.faults_parts import loss_from_log_probs, loss_from_logits
from sdpo.parity.invariants import FROM_LOG_PROBS, PARTIAL, invariants, outcome_of, row_of
from sdpo.parity.prepared import prepared
from sdpo.parity.relation_cases import bases
from sdpo.parity.relations import RELATION_NAMES, RELATIONS, claims_of

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
    assert [row["name"] for row in invariants(Own())] == list(RELATION_NAMES)


def test_an_audit_reports_every_relation_and_its_verdict_does_not_depend_on_them():
    candidate = FromLogits("planted", by_row)
    runs = [
        judge(Request("planted"), candidate, [], [], lambda *_: None, isolation=isolation)
        for isolation in (True, False)
    ]
    assert [row["name"] for row in runs[0]["invariants"]] == list(RELATION_NAMES)
    violated = {row["name"] for row in runs[0]["invariants"] if row["status"] == "VIOLATED"}
    assert "row order" in violated
    assert runs[1] | {"invariants": runs[0]["invariants"]} == runs[0]


@pytest.mark.parametrize("name", RELATION_NAMES)
def test_ours_keeps_each_relation_that_the_reference_keeps(name):
    row = row_of(Own(), BY_NAME[name])
    inherited = name in BROKEN_BY_REFERENCE and name != OURS_IS_FINITE
    assert row["status"] == ("INHERITED" if inherited else "HOLDS")
    assert set(row["cases"]) <= {"HOLDS", "INHERITED"}


@pytest.mark.parametrize("name", RELATION_NAMES)
def test_what_the_reference_violates_is_known(name):
    relation = BY_NAME[name]
    found = {
        claim.case.id: outcome_of(Transcription(), relation, claim).status
        for claim in claims_of(relation)
        if relation.kind != "teacher"
    }
    broken = {case for case, status in found.items() if status == "VIOLATED"}
    assert broken == BROKEN_BY_REFERENCE.get(name, set())
    assert set(found.values()) <= {"VIOLATED", "HOLDS"}
    row = row_of(Transcription(), relation)
    assert row["of_reference"] == ("VIOLATED" if broken else "HOLDS")
    assert row["status"] == ("INHERITED" if broken else "HOLDS")


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
    assert row["status"] == "VIOLATED"
    if name == "teacher gets no gradient":
        assert (row["worst"], "teacher" in row["note"]) == (None, True)
    else:
        assert row["worst"]["used"] > 1


@pytest.mark.parametrize(
    ("name", "function"),
    [("padding side", by_column), ("row order", by_row), ("vocabulary order", by_entry)],
)
def test_a_planted_dependence_violates_the_relation(name, function):
    row = judged(function, name)
    assert row["status"] == "VIOLATED"
    assert row["cases"] == {"VIOLATED": len(claims_of(BY_NAME[name]))}


def test_a_continuous_divergence_is_told_from_the_reference():
    row = judged(continuous, "continuity in alpha")
    assert row["cases"] == {"HOLDS": 4}
    assert row["of_reference"] == "VIOLATED"


def test_a_candidate_is_not_blamed_where_the_reference_breaks_a_relation_too():
    whole = judged(loss_from_logits({}), "micro-batch split")
    assert whole["cases"] == {"INHERITED": 3, "HOLDS": 3}
    summed = judged(loss_from_logits(BY_ID["M87"].parts), "micro-batch split")
    assert summed["status"] == "VIOLATED"
    assert summed["worst"]["case"] not in SPLIT


def test_what_cannot_be_tested_says_why():
    log_probs = FromLogProbs("planted", loss_from_log_probs({}))
    rows = {row["name"]: row for row in invariants(log_probs)}
    untested = {name for name, row in rows.items() if row["status"] == "NOT_COVERED"}
    assert untested == {"logit shift", "teacher gets no gradient"}
    assert {rows[name]["note"] for name in untested} == {FROM_LOG_PROBS}

    class Stages:
        @staticmethod
        def aggregate(per_token_loss, loss_mask, loss_agg_mode):
            return per_token_loss.sum()

    rows = invariants(StageFunctions("stages", Stages()))
    assert {(row["status"], row["note"]) for row in rows} == {("NOT_COVERED", PARTIAL)}


def test_a_candidate_that_fails_or_has_no_gradient_says_so():
    def raises(student_logits, teacher_logits, responses, response_mask):
        raise RuntimeError("boom")

    row = judged(raises, "row order")
    assert (row["status"], row["worst"]) == ("ERROR", None)
    assert "boom" in row["note"]

    def detached(*args, **kwargs):
        return self_distillation_loss(*args, **kwargs).detach()

    row = judged(detached, "row order")
    assert (row["status"], row["worst"]["value"]) == ("HOLDS", "loss")
    assert "no graph" in row["note"]
    assert judged(detached, "teacher gets no gradient")["status"] == "NOT_COVERED"


def test_no_case_has_an_open_choice_and_shifts_are_exact():
    for relation in RELATIONS:
        for claim in claims_of(relation):
            for case in (claim.case, *(part.case for part in claim.parts)):
                truth = prepared(case).truth
                assert (truth.certain == truth.possible).all(), case.id
    for case in bases():
        assert ((case.student_logits + 4) - 4).equal(case.student_logits)
        assert ((case.teacher_logits - 8) + 8).equal(case.teacher_logits)
