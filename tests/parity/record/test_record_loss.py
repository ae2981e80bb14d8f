"""Ties of the student's logits, which the manifest of a loss counts."""

import torch

from sdpo.parity.record.record_loss import ties


def test_ties_are_counted_inside_of_the_top_k_and_across_its_edge():
    logits = torch.tensor([[[3.0, 3.0, 1.0, 0.0], [3.0, 2.0, 2.0, 0.0], [3.0, 2.0, 1.0, 0.0]]])
    inside, edge = "positions_with_tie_inside_topk", "positions_with_tie_at_boundary"
    assert ties(logits, 2) == {inside: 1, edge: 1}
    assert ties(logits, 4) == {inside: 2, edge: 0}
    assert ties(logits, None) is None
