"""The certificate of an audit: it is measured on the audit's own cases, and names survivors."""

import msgspec
import pytest

from sdpo.fixtures import packaged_family
from sdpo.parity.cases.loss_case import loss_cases
from sdpo.parity.compare.loss_stages import ORDER
from sdpo.parity.explain.explanation_rows import Certificate
from sdpo.parity.explain.fault_coverage import HINTS, certificate, hints, shows
from sdpo.parity.faults.catalogue import LOSS_FAULTS
from sdpo.parity.render.text import certificate as sentence
from sdpo.parity.report.run_report import InconsistentReportError
from sdpo.settings.determinism import deterministic
from tests.helpers.run_documents import changed, passing

LOSS_ONLY = ("aggregate", "gradient")


def cases():
    return loss_cases(packaged_family("loss"))


def test_every_fault_shows_on_the_packaged_cases_in_loss_and_gradient_alone():
    with deterministic():
        row = certificate(LOSS_ONLY, cases())
    assert row == Certificate(len(LOSS_FAULTS), len(LOSS_FAULTS), [])
    assert hints().keys() == {fault.id for fault in LOSS_FAULTS}, f"write {HINTS} again"


def test_one_case_proves_little_and_says_so():
    with deterministic():
        row = certificate(LOSS_ONLY, cases()[:1])
    assert row is not None
    assert 0 < row.killed < row.tested
    assert any(label.startswith("M17b") for label in row.survivors)
    text = sentence(changed(passing(), "sensitivity", "faults", value=msgspec.to_builtins(row)))
    assert text.startswith(f"certificate: {row.killed} of {row.tested} known faults show")
    assert "more" in text


def test_a_loss_from_log_probs_is_not_credited_with_faults_it_cannot_have():
    with deterministic():
        row = certificate(LOSS_ONLY, cases(), after_log_probs=True)
    assert row is not None
    assert row.tested == row.killed == sum(f.after_log_probs for f in LOSS_FAULTS)


def test_a_fault_after_all_exposed_stages_survives_without_a_trial():
    few, shown = cases()[:3], {"support"}
    later = [fault for fault in LOSS_FAULTS if ORDER.index(fault.stage) > ORDER.index("support")]
    with deterministic():
        row = certificate(shown, few)
        assert not any(shows(fault, shown, case) for fault in later for case in few)
    assert row is not None
    assert {fault.label for fault in later} <= set(row.survivors)
    assert row.killed > 0


def test_without_a_stage_of_the_loss_there_is_none():
    assert certificate(("teacher_prompt",), cases()) is None
    assert certificate(LOSS_ONLY, []) is None
    assert sentence(passing()) == ""


def test_a_certificate_that_does_not_add_up_is_refused():
    faults = {"tested": 3, "killed": 3, "survivors": ["M01 x"]}
    run = changed(passing(), "sensitivity", "faults", value=faults)
    with pytest.raises(InconsistentReportError, match="known faults"):
        run.check()
