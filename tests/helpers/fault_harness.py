"""What the tests of sensitivity share: golden families cut to some cases, and audits of faults."""

from functools import cache

from sdpo.fixtures import GoldenFamily, packaged_family
from sdpo.parity.audit.self_test import families, judged_here, subset
from sdpo.parity.cases.checked_call import LossCandidate
from sdpo.parity.cases.loss_case import loss_cases
from sdpo.parity.compare.evaluated_case import evaluate_case
from sdpo.parity.explain.fault_coverage import hints
from sdpo.parity.explain.match_faults import evaluation
from sdpo.parity.faults.catalogue import Fault
from sdpo.parity.report.run_report import RunReport
from sdpo.settings.determinism import deterministic

ACTING, IDLE = 3, 1
LEAP = 37


@cache
def some_cases(ids: tuple[str, ...]) -> GoldenFamily:
    return subset(packaged_family("loss"), ids)


@cache
def telling_cases(fault: Fault) -> GoldenFamily:
    """A few cases on which a fault acts, and one on which it does not.

    Neighbours in the recording are alike, so that cases are taken in leaps until there are enough.
    The first is the certificate's: an evaluation has nothing to say of a batch without tokens.
    """
    acting, idle = [hints()[fault.id]] if fault.id in hints() else [], []
    cases = loss_cases(families()[0])
    for number in range(len(cases)):
        case = cases[number * LEAP % len(cases)]
        given = evaluation((fault,), evaluate_case(case))
        found, most = (acting, ACTING) if given is None or given.changes else (idle, IDLE)
        if len(found) < most and case.id not in acting:
            found.append(case.id)
        if len(acting) == ACTING and len(idle) == IDLE:
            break
    return some_cases((*acting, *idle))


def run_of(candidate: LossCandidate, family: GoldenFamily) -> RunReport:
    with deterministic():
        return judged_here(candidate, family)
