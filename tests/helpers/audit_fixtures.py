"""Folders of golden data for the tests of verdicts, and what their audits share.

A plugin of the suite: what is heavy is imported by the fixtures that use it.
"""

import copy
from typing import Any

import pytest

from tests.helpers.golden_subset import SOME, subset

CERTIFICATES: dict[Any, Any] = {}
FAMILIES: dict[Any, Any] = {}


@pytest.fixture
def certificates_once(monkeypatch):
    """A certificate depends on stages and cases, not on the candidate: each is made once."""
    from sdpo.parity.audit import audit
    from sdpo.parity.explain.fault_coverage import certificate

    def known(stages, cases, **options):
        key = (frozenset(stages), tuple(case.id for case in cases), *sorted(options.items()))
        if key not in CERTIFICATES:
            CERTIFICATES[key] = certificate(stages, cases, **options)
        return copy.deepcopy(CERTIFICATES[key])

    monkeypatch.setattr(audit, "certificate", known)


@pytest.fixture
def budgets_once(monkeypatch, goldens, float32_goldens):
    """Oracle and reference of the shared cases, too, do not depend on the candidate."""
    from sdpo.parity.audit import audit

    load, shared = audit.load_goldens, {(str(goldens),), (str(float32_goldens),)}

    def known(folders):
        if tuple(folders) not in shared:
            return load(folders)
        if tuple(folders) not in FAMILIES:
            FAMILIES[tuple(folders)] = load(folders)
        return FAMILIES[tuple(folders)]

    monkeypatch.setattr(audit, "load_goldens", known)


@pytest.fixture(scope="session")
def relations():
    from sdpo.parity.candidates.loss_functions import FromLogits
    from sdpo.parity.faults.evaluate_fault import loss_from_logits
    from sdpo.parity.relations.check import invariants

    return invariants(FromLogits("the reference", loss_from_logits({})))


@pytest.fixture
def relations_once(monkeypatch, relations):
    """Relations do not enter a verdict: those of the reference stand for the candidate's."""
    from sdpo.parity.audit import audit

    monkeypatch.setattr(audit, "invariants", lambda *_: copy.deepcopy(relations))


@pytest.fixture(scope="session")
def goldens(tmp_path_factory):
    """Nine recorded cases that between them use every stage."""
    return subset(tmp_path_factory.mktemp("goldens"), SOME)


@pytest.fixture(scope="session")
def float32_goldens(tmp_path_factory):
    """Three cases whose budgets leave room for one part in ten million."""
    return subset(tmp_path_factory.mktemp("float32"), ("P-L005", "P-L018", "P-L030"))
