"""What the tests of sensitivity share: golden families cut to some cases, and audits of faults."""

from functools import cache
from typing import Any

from sdpo.determinism import deterministic
from sdpo.fixtures import PACKAGED, GoldenFamily, load_family
from sdpo.parity.adapters.base import LossCandidate
from sdpo.parity.explain import evaluation
from sdpo.parity.faults_parts import Fault
from sdpo.parity.prepared import loss_cases, prepared
from sdpo.parity.selftest import families, judged_here, subset

ACTING, IDLE = 3, 2


@cache
def all_cases() -> GoldenFamily:
    return load_family(PACKAGED / "loss", "loss")


@cache
def some_cases(ids: tuple[str, ...]) -> GoldenFamily:
    return subset(all_cases(), ids)


def telling_cases(fault: Fault) -> GoldenFamily:
    """A few cases on which a fault acts, and a few on which it does not."""
    acting, idle = [], []
    for case in loss_cases(families()[0]):
        given = evaluation((fault,), prepared(case))
        acts = given is None or given.changes
        (acting if acts else idle).append(case.id)
    step = max(len(acting) // ACTING, 1)
    return some_cases((*acting[::step][: ACTING + 1], *idle[:IDLE]))


def run_of(candidate: LossCandidate, family: GoldenFamily) -> dict[str, Any]:
    with deterministic():
        return judged_here(candidate, family)
