"""Two values have one fingerprint only if they are the same."""

from itertools import combinations

import pytest
import torch

from sdpo.parity.trainers.recording.fingerprints import fingerprint

DIFFERENT = [
    None,
    0,
    0.0,
    False,
    "0",
    [0],
    {"0": 0},
    ["ab", "c"],
    ["a", "bc"],
    [["a"], "b"],
    torch.zeros(2),
    torch.zeros(1, 2),
    torch.zeros(2, dtype=torch.int32),
    torch.zeros(2, dtype=torch.float64),
    torch.tensor([0.0, -0.0]),
]


@pytest.mark.parametrize(("left", "right"), list(combinations(range(len(DIFFERENT)), 2)))
def test_values_that_differ_have_other_fingerprints(left, right):
    assert fingerprint(DIFFERENT[left]) != fingerprint(DIFFERENT[right])


def test_the_order_of_a_mapping_and_the_memory_of_a_tensor_do_not_matter():
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    square = torch.arange(4.0).reshape(2, 2)
    assert fingerprint(square.T) == fingerprint(torch.tensor([[0.0, 2.0], [1.0, 3.0]]))


def test_something_else_has_no_fingerprint():
    with pytest.raises(TypeError, match="no fingerprint of a object"):
        fingerprint([object()])
