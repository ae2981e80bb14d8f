"""What cases are cut, moved and relabelled to, on shapes that a reader can count."""

import numpy as np
import torch

from sdpo.parity.relations.transformed_cases import (
    GRID,
    NEAR,
    bases,
    claims_of,
    generated,
    into_rows,
    padded,
    rows_of,
)


def test_rows_are_ragged_and_logits_lie_on_a_grid():
    case = generated("some", 1)
    assert case.response_mask.tolist() == [
        [1, 1, 1, 1],
        [1, 1, 1, 0],
        [1, 1, 0, 0],
        [1, 0, 0, 0],
    ]
    steps = case.student_logits * GRID
    assert torch.equal(steps, steps.round())


def test_a_gradient_of_some_rows_is_put_back_where_they_were():
    place = into_rows((2, 0), 3)
    assert place(np.array([[5.0], [7.0]])).tolist() == [[7.0], [0.0], [5.0]]


def test_a_split_gives_each_half_its_share():
    claim = claims_of("micro-batch split")[0]
    assert [part.weight for part in claim.parts] == [0.5, 0.5]
    first, second = (part.case.responses for part in claim.parts)
    assert torch.equal(torch.cat([first, second]), claim.case.responses)
    dealt = claims_of("process split")[0].parts[0].case.responses
    assert torch.equal(dealt, claim.case.responses[[0, 2]])


def test_padding_is_on_one_side_and_counts_nothing():
    case = bases()[0]
    left, right = padded(case, 2, left=True), padded(case, 2, left=False)
    assert left.response_mask[0].tolist() == [0, 0, 1, 1, 1, 1]
    assert right.response_mask[0].tolist() == [1, 1, 1, 1, 0, 0]
    assert torch.equal(left.student_logits[:, 2:], right.student_logits[:, :-2])


def test_all_inputs_of_a_row_move_together():
    weighted = bases()[-1]
    moved = rows_of(weighted, (2, 0))
    assert moved.id.endswith("rows 2, 0")
    for name in ("student_logits", "responses", "response_mask", "rollout_is_weights"):
        assert torch.equal(getattr(moved, name), getattr(weighted, name)[[2, 0]])


def test_another_numbering_moves_the_sampled_tokens_along():
    for claim in claims_of("vocabulary order"):
        (part,) = claim.parts
        at = claim.case.responses[..., None], part.case.responses[..., None]
        before, after = claim.case.student_logits, part.case.student_logits
        assert torch.equal(before.gather(-1, at[0]), after.gather(-1, at[1]))
        assert np.array_equal(part.place(after.numpy()), before.numpy())


def test_the_ends_of_alpha_are_extrapolated_from_two_points():
    """A line through f(h/2) and f(h) is 2 f(h/2) - f(h) at zero."""
    claim = claims_of("continuity in alpha")[0]
    assert claim.case.config.alpha == 0.0
    points = [(part.case.config.alpha, part.weight) for part in claim.parts]
    assert points == [(NEAR / 2, 2.0), (NEAR, -1.0)]
