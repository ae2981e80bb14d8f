"""Functions of a checkout on recorded losses, here of the stand-in, and sizes for the pencil."""

import pytest
import torch

from sdpo.fixtures import load_family
from sdpo.parity.checkouts.description import FunctionResult
from sdpo.parity.checkouts.recorded_functions import checks, relative_distance, run_check
from sdpo.parity.live_fork.checkout import find_verl
from tests.helpers.golden_subset import SOME, subset


@pytest.fixture
def results(stand_in, tmp_path):
    """Results by name, of a stand-in with texts replaced."""

    def run(**replaced) -> dict[str, FunctionResult]:
        find_verl(stand_in(**replaced))
        family = load_family(subset(tmp_path / "cases", SOME), "loss")
        return {check.name: run_check(check, family) for check in checks()}

    return run


def test_functions_of_the_fork_give_the_recorded_losses(results):
    loss = results()["`compute_self_distillation_loss`"]
    assert (loss.cases, loss.one_side_finite, loss.problem) == (len(SOME), 0, "")
    assert loss.largest < 1e-3


def test_a_function_that_a_checkout_lacks_has_no_cases(results):
    kl = results()["`compute_forward_kl_topk`, against alpha 0 with a tail"]
    assert kl == FunctionResult("`compute_forward_kl_topk`, against alpha 0 with a tail")


def test_a_factor_of_two_is_half_of_the_larger_value(results):
    doubled = results(**{"trainer/ppo/core_algos": ("return total", "return 2 * total")})
    loss = doubled["`compute_self_distillation_loss`"]
    assert (loss.equal, round(loss.largest, 2)) == (0, 0.5)


def test_what_a_function_raises_is_told_with_its_case(results):
    raising = results(**{"trainer/ppo/core_algos": ("return total", "return absent")})
    loss = raising["`compute_self_distillation_loss`"]
    assert loss.problem == "NameError: name 'absent' is not defined (P-L001)"


def test_the_distance_is_a_share_of_the_larger_value():
    zero, one = torch.zeros(2), torch.tensor([3.0, 4.0])
    assert relative_distance(zero, zero) == 0
    assert relative_distance(zero, one) == relative_distance(one, zero) == 1
    assert relative_distance(one * 2, one) == 0.5
