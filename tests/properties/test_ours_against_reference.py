"""On random shapes, masks, dtypes, alpha and K ours stays within the oracle's budget.

The same holds for the transcription, which checks the oracle itself.
"""

from hypothesis import HealthCheck, given, settings
from loss_inputs import loss_cases

from sdpo.parity.adapters.own import Own
from sdpo.parity.budget import truth
from sdpo.parity.case import reference_trace
from sdpo.parity.compare import DECLARED, MATCH, NOT_COVERED, PASS
from sdpo.parity.loss_family import compare_loss

SETTINGS = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
FINE = (MATCH, PASS, DECLARED, NOT_COVERED)


@SETTINGS
@given(loss_cases())
def test_ours_is_within_budget(case):
    reference = reference_trace(case)
    for comparison in compare_loss(case, truth(case), reference, Own().trace(case)):
        assert comparison.status in FINE, (case, comparison)


@SETTINGS
@given(loss_cases())
def test_transcription_is_within_budget_of_the_oracle(case):
    reference, expected = reference_trace(case), truth(case)
    for name in ("divergence", "importance"):
        value = reference[name].double().numpy()[expected.counts]
        assert (abs(value - expected.values[name]) <= expected.bounds[name]).all(), name
    gradient = reference["gradient"].double().numpy()
    assert (abs(gradient - expected.values["gradient"]) <= expected.bounds["gradient"]).all()
