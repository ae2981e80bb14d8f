"""Which choice among ties a candidate made, where it shows no indices: its gradient tells.

Loss and gradient are then compared with the reference made to choose the same, so that a tie leaves
no room: not for another number of entries, nor for an entry that does not tie.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from sdpo.parity.cases.loss_case import LossCase
from sdpo.parity.truth import oracle
from sdpo.parity.truth.budget import Truth
from sdpo.parity.truth.oracle import Array, array_of


def choice_shown(
    case: LossCase, truth: Truth, reference: Mapping[str, Tensor], actual: Mapping[str, Tensor]
) -> Tensor | None:
    """Find the support that a candidate chose, `(B, T, K)`; None if its values do not tell.

    Args:
        case: the inputs.
        truth: with budgets for all choices.
        reference: stage values of the reference.
        actual: of the candidate; its own indices count, else its gradient.
    """
    recorded = reference["support.indices"]
    counts = torch.from_numpy(truth.counts)
    shown = actual.get("support.indices")
    if shown is not None:
        if shown.shape != recorded.shape:
            return None
        return shown if truth.ties.admits(marked(shown[counts], truth)).all() else None
    gradient = actual.get("gradient")
    if gradient is None or gradient.shape != case.student_logits.shape:
        return None
    chosen = marked(recorded[counts], truth)
    indices = recorded.clone()
    of_tokens = recorded[counts]
    rows = array_of(gradient)[truth.counts]
    with np.errstate(all="ignore"):
        for n in np.flatnonzero(truth.ties.open):
            nearest = _nearest_choice(case, truth, int(n), chosen[n], rows[n])
            if (nearest != chosen[n]).any():
                of_tokens[n] = torch.from_numpy(np.flatnonzero(nearest))
    indices[counts] = of_tokens
    return indices


def marked(indices: Tensor, truth: Truth) -> Array:
    """Turn indices `(N, K)` into a mask `(N, V)`."""
    return oracle.marked(indices.numpy(), truth.log_p.shape[-1])


def _nearest_choice(case: LossCase, truth: Truth, n: int, start: Array, row: Array) -> Array:
    """Find the choice `(V,)` for token `n` that a gradient `(V,)` comes nearest to.

    `start` `(V,)` is the reference's, kept if the gradient tells nothing.
    """
    weight = truth.gradient_weight[n]
    if not (weight and np.isfinite(weight)):
        return start
    token = truth.open_token(case, n)
    slope = row / weight
    others = np.delete(slope, token.entries)
    nearest = token.nearest(np.append(slope[token.entries], others.sum()), start[token.entries])
    chosen = np.zeros_like(start)
    chosen[token.entries] = nearest
    return chosen
