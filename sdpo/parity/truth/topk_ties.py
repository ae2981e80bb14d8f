"""Which entries of the vocabulary may be in the support: ties at the edge of the top-k are open.

A program takes the K largest of a key that orders the entries as the logits x do: any of

    x ─ ÷ temperature ─► z ─ - max ─► z - m ─ - log Σ exp ─► log p ─ exp ─► p

Each arrow rounds, so that the keys of two logits may become equal or change places. An entry's key
is taken for an interval: its z, give or take all roundings on the longest of these ways. Entries
whose intervals overlap tie. What moves all keys of a token alike (the normalizer, a factor) leaves
their order as it is and is no part of it. Zero is no rounding of a probability: those below the
smallest number of the dtype have lost their order, and a program that chooses by them is wrong.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from sdpo.parity.truth import error_bounds
from sdpo.parity.truth.oracle import Array
from sdpo.parity.truth.tolerances import TOLERANCES


def _key_errors(z: Array, log_p: Array, divided: bool, dtype: torch.dtype) -> Array:
    """Bound how far each key may be from its z, `(N, V)`; zero where z or log p is not finite.

    The largest may be taken away before the division or after it, so that either |z| or |z - m| is
    rounded by the division; z - m is rounded when it is made, and so is log p. The exponential and
    its quotient by the sum are rounded by one unit each in the logarithm, by more below the normal
    numbers.

    Args:
        z: `(N, V)`, logits ÷ temperature.
        log_p: `(N, V)`.
        divided: whether the temperature is another than 1.
        dtype: of the computation.
    """
    u, tiny = error_bounds.unit_roundoff(dtype), torch.finfo(dtype).tiny
    finite = np.isfinite(z) & np.isfinite(log_p)
    below = np.abs(np.where(finite, z - z.max(axis=-1, keepdims=True), 0))
    z, log_p = np.where(finite, z, 0), np.where(finite, log_p, 0)
    # half precision exponentiates in float32 and rounds once
    of_exp = 1 if u > error_bounds.HALF_PRECISION else TOLERANCES.exp_roundings
    of_division = np.maximum(np.abs(z), below) * divided
    p = np.exp(log_p)
    # a unit of p in its logarithm: more than one rounding below the normal numbers
    of_p = np.where(p < 2 * u * tiny, 1, np.maximum(tiny / np.maximum(p, 2 * u * tiny), 1))
    roundings = of_division + below + np.maximum(np.abs(log_p), of_p) + of_exp * of_p
    return np.where(finite, u * roundings, 0)


@dataclass(frozen=True)
class Ties:
    """Intervals of the keys `(N, V)`, of which a correct program takes the `count` largest."""

    lowest: Array
    highest: Array
    count: int

    @cached_property
    def certain(self) -> Array:
        """`(N, V)`: entries that are above all but `count - 1` others, wherever the keys are."""
        if self.count == self.lowest.shape[-1]:
            return np.ones_like(self.lowest, dtype=bool)
        return self.lowest > _at_rank(self.highest, self.count)

    @cached_property
    def possible(self) -> Array:
        """`(N, V)`: entries that fewer than `count` others are above, wherever the keys are."""
        return self.highest >= _at_rank(self.lowest, self.count - 1)

    @property
    def open(self) -> Array:
        """`(N,)`: tokens with more than one choice."""
        return (self.certain != self.possible).any(axis=-1)

    def admits(self, chosen: Array) -> Array:
        """Tell whether a correct program may choose these entries, for each token of `(N, V)`.

        So many of them, and none of the others certainly above one of them.
        """
        left_out = np.where(chosen, -np.inf, self.lowest).max(axis=-1)
        taken = np.where(chosen, self.highest, np.inf).min(axis=-1)
        return (chosen.sum(axis=-1) == self.count) & (left_out <= taken)

    def of_token(self, token: int, entries: Array) -> "Ties":
        """Return the same of one token and some entries, by their numbers; `count` stays."""
        at = (slice(token, token + 1), entries)
        return Ties(self.lowest[at], self.highest[at], self.count)


def _at_rank(keys: Array, rank: int) -> Array:
    """Return the key `(N, 1)` that `rank` others of its token are not below."""
    return -np.partition(-keys, rank, axis=-1)[:, rank : rank + 1]


def ties_of(z: Array, log_p: Array, count: int, divided: bool, dtype: torch.dtype) -> Ties:
    """Take the keys for intervals; NaN is above all, as in `torch.topk`.

    Args:
        z: `(N, V)`, logits ÷ temperature.
        log_p: `(N, V)`.
        count: how many entries a program takes.
        divided: whether the temperature is another than 1.
        dtype: of the computation.
    """
    error = _key_errors(z, log_p, divided, dtype)
    keys = np.where(np.isnan(z), np.inf, z)
    return Ties(keys - error, keys + error, count)


def settled(chosen: Array) -> Ties:
    """Leave no choice: just these entries `(N, V)`, of which each token has equally many."""
    keys = np.where(chosen, 1.0, 0.0)
    return Ties(keys, keys, int(chosen.sum(axis=-1).max(initial=1)))
