"""Correct losses of another order or form are never blamed, by the path of a user's candidate."""

import pytest
import torch

from sdpo.fixtures import packaged_family
from sdpo.parity.audit.self_test import families
from sdpo.parity.candidates.log_prob_functions import FromLogProbs
from sdpo.parity.candidates.loss_functions import FromLogits
from sdpo.parity.cases.loss_case import loss_cases
from sdpo.parity.faults.evaluate_fault import loss_from_log_probs, loss_from_logits
from sdpo.parity.faults.reference_parts import FROM_LOGITS_ONLY
from sdpo.parity.relations.check import invariants
from tests.helpers.correct_variants import TAIL_BY_LOG1P, VARIANTS, applies
from tests.helpers.fault_harness import run_of, some_cases
from tests.helpers.spread import one_in

FROM_LOG_PROBS = [name for name, parts in VARIANTS.items() if not FROM_LOGITS_ONLY & parts.keys()]


def cases_for(name: str):
    ids = [case.id for case in loss_cases(families()[0]) if applies(name, case)]
    return some_cases(tuple(ids))


def check(run):
    assert run.verdict in ("PASS", "DECLARED"), (run.message, run.first_stage)
    assert run.explained_by == []
    declared = [case for case in run.cases if case.status == "DECLARED"]
    assert all("weight zero" in case.note for case in declared)


@pytest.mark.parametrize("name", one_in(2, VARIANTS))
def test_from_logits(name):
    check(run_of(FromLogits(name, loss_from_logits(VARIANTS[name])), cases_for(name)))


@pytest.mark.parametrize("name", one_in(2, FROM_LOG_PROBS))
def test_from_log_probs(name):
    check(run_of(FromLogProbs(name, loss_from_log_probs(VARIANTS[name])), cases_for(name)))


@pytest.mark.parametrize("name", one_in(5, sorted(VARIANTS)))
def test_no_metamorphic_relation_is_violated(name):
    rows = invariants(FromLogits(name, loss_from_logits(VARIANTS[name])))
    assert {row.name: row.status for row in rows} == {
        row.name: "INHERITED" if row.of_reference == "VIOLATED" else "HOLDS" for row in rows
    }
    held = [row.worst for row in rows if row.status == "HOLDS" and row.worst]
    assert max(float(worst.used) for worst in held) < 0.5


def test_log1p_near_the_limit_of_the_tail_is_a_fault():
    ids = tuple(c.id for c in loss_cases(packaged_family("loss")) if "near_one_hot" in c.tags)
    run = run_of(FromLogits("log1p", loss_from_logits(VARIANTS[TAIL_BY_LOG1P])), some_cases(ids))
    assert run.verdict == "DIVERGENT"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled():
    function = torch.compile(loss_from_logits({}), dynamic=True)
    try:
        run = run_of(FromLogits("compiled", function), some_cases(("P-L018", "P-L030")))
    except Exception as error:
        pytest.skip(f"torch.compile does not work here: {error}")
    if run.verdict == "ERROR":
        pytest.skip(f"torch.compile does not work here: {run.message}")
    check(run)
