"""The names under which the stages' values are compared."""

import torch

from sdpo.loss.stage_values import LossStages, TokenStages
from sdpo.loss.support import Support

ONE, TWO, THREE = (torch.tensor(float(number)) for number in (1, 2, 3))


def tokens(support: Support | None, tails: tuple | None) -> TokenStages:
    return TokenStages(ONE, TWO, support, tails, THREE, THREE)


def test_a_stage_that_the_mode_leaves_out_has_no_name():
    always = ["log_probs.student", "log_probs.teacher", "divergence", "importance"]
    assert list(tokens(None, None).named()) == always
    sides = ["support.student", "support.teacher"]
    vocabulary = tokens(Support(None, ONE, TWO), None).named()
    assert list(vocabulary) == [*always[:2], *sides, *always[2:]]
    top = tokens(Support(THREE, ONE, TWO), (TWO, THREE)).named()
    added = ["support.indices", "tail.student", "tail.teacher"]
    assert list(top) == [*always[:2], *sides, *added, *always[2:]]


def test_each_name_has_its_value():
    named = LossStages(tokens(Support(THREE, ONE, TWO), (TWO, THREE)), ONE, TWO).named()
    assert (named["support.student"], named["support.teacher"]) == (ONE, TWO)
    assert (named["support.indices"], named["tail.teacher"]) == (THREE, THREE)
    assert (named["loss_mask"], named["aggregate"]) == (ONE, TWO)
