"""Loss stages of a candidate against the reference, on one case."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sdpo.parity.cases.checked_call import same_bits
from sdpo.parity.cases.loss_case import LossCase, transcription_trace
from sdpo.parity.compare.clamped_divergence import with_clamps
from sdpo.parity.compare.comparison import Comparison, Expected, compare_exact, compare_numeric
from sdpo.parity.compare.improvements import EMPTY_BATCH, ZERO_PROBABILITY, ZERO_WEIGHT
from sdpo.parity.compare.statuses import Status
from sdpo.parity.truth.budget import Truth, truth
from sdpo.parity.truth.followed_choice import choice_shown
from sdpo.parity.truth.norm_limit import norm_limit, size_and_direction
from sdpo.parity.truth.oracle import Array, array_of, marked
from sdpo.parity.truth.rounded_token_counts import counting_exactly, difference

DIVERGING = ("divergence", "importance")
PER_TOKEN = ("log_probs.student", "log_probs.teacher", "divergence", "importance")
ORDER = ("log_probs", "support", "tail", "divergence", "importance", "aggregate", "gradient")

OUTCOMES = ("aggregate", "gradient")

Trace = Mapping[str, Tensor]


def stage_of(name: str) -> str | None:
    """The stage of a value, None for one that is not compared."""
    stage = name.split(".")[0]
    return stage if stage in ORDER else None


GROUPS = (
    *((name,) for name in PER_TOKEN),
    ("support.student", "support.teacher", "support.indices"),
    ("tail.student", "tail.teacher", "support.indices"),
    ("aggregate",),
    ("gradient",),
)
"""Values that are compared together; a group is compared if its first value is exposed."""


@dataclass(eq=False)
class Standard:
    """What the values of a candidate are judged by on one case; what is made of it is kept.

    Attributes:
        case: the inputs.
        truth: oracle values and budgets.
        reference: stage values of the reference.
        widen: what was done to the budgets of the case, to be done to those of a choice too.
    """

    case: LossCase
    truth: Truth
    reference: Trace
    widen: Callable[[Truth], Truth] = lambda found: found
    _expected: dict[str, Expected] = field(default_factory=dict, init=False)
    _of_itself: dict[tuple[str, ...], list[Comparison]] = field(default_factory=dict, init=False)
    _choosing: dict[bytes, "Standard"] = field(default_factory=dict, init=False)

    def choosing(self, indices: Tensor) -> "Standard":
        """What judges a candidate that chose this support `(B, T, K)` among ties."""
        key = indices.numpy()[self.truth.counts].tobytes()
        if key not in self._choosing:
            case = replace(self.case, recorded={"support.indices": indices})
            own = self.reference
            if not torch.equal(indices, own["support.indices"]):
                own = transcription_trace(case, indices)
            self._choosing[key] = Standard(case, self.widen(truth(case, all_choices=False)), own)
        return self._choosing[key]

    @cached_property
    def exact(self) -> "Standard | None":
        """What judges a candidate that counts tokens exactly; None if the reference does too."""
        case = counting_exactly(self.case)
        if case is None:
            return None
        own = transcription_trace(case, self.reference.get("support.indices"))
        return Standard(case, self.widen(truth(case)), own, self.widen)

    @property
    def epsilon(self) -> float:
        """Distance from one to the next number of the case's dtype."""
        return torch.finfo(self.case.dtype).eps

    def expected(self, name: str) -> Expected:
        """What a per-token value, the loss or its gradient is compared with."""
        if name not in self._expected:
            per_token = name in PER_TOKEN
            self._expected[name] = (
                _expected_token(name, self) if per_token else _expected_output(name, self)
            )
        return self._expected[name]

    def of_itself(self, names: tuple[str, ...]) -> list[Comparison]:
        """The comparisons of a group of the reference's own values."""
        if names not in self._of_itself:
            own = {name: self.reference[name] for name in names}
            self._of_itself[names] = _compare_group(names[0], self, own)
        return self._of_itself[names]


def compare_loss(standard: Standard, actual: Trace) -> list[Comparison]:
    """Compare every stage value that the candidate exposes.

    Args:
        standard: the inputs, and what judges them.
        actual: stage values of the candidate, under the reference's names.

    Returns:
        One comparison for each value, in stage order.
    """
    found = _compare_values(standard, actual)
    if _outcome_diverges(found) and standard.exact is not None:
        again = _compare_values(standard.exact, actual)
        if not _outcome_diverges(again):
            before = [comparison for comparison in found if comparison.stage not in OUTCOMES]
            after = [comparison for comparison in again if comparison.stage in OUTCOMES]
            note = difference(standard.case)
            return before + [replace(comparison, note=note) for comparison in after]
    return found


def _outcome_diverges(found: Sequence[Comparison]) -> bool:
    """Whether loss or gradient diverge."""
    return any(c.status == Status.DIVERGENT for c in found if c.stage in OUTCOMES)


def _compare_values(standard: Standard, actual: Trace) -> list[Comparison]:
    """Compare every stage value that is exposed, counts of tokens as in the standard."""
    found: list[Comparison] = []
    own = standard.reference
    following = followed(standard, actual) if standard.truth.ties.open.any() else {}
    for names in GROUPS:
        if names[0] in actual:
            shown = {name: actual[name] for name in names if name in actual}
            if all(name in own and same_bits(shown[name], own[name]) for name in shown):
                found.extend(standard.of_itself(tuple(shown)))
            else:
                by = following.get(names[0], standard)
                found.extend(_compare_group(names[0], by, shown))
    for place, comparison in enumerate(found):
        if comparison.stage == "gradient" and comparison.status == Status.DIVERGENT:
            by = following.get("gradient", standard)
            found[place] = with_clamps(comparison, by, actual, zero_probability(by))
    return sorted(found, key=lambda comparison: ORDER.index(comparison.stage))


def followed(standard: Standard, actual: Trace) -> dict[str, Standard]:
    """What judges the values behind a choice among ties, by their names: the choice that was made.

    A gradient that is not that of any choice says nothing about the loss, which then may be that of
    all choices.
    """
    indices = choice_shown(standard.case, standard.truth, standard.reference, actual)
    if indices is None:
        return {}
    of_choice = standard.choosing(indices)
    behind = {name: of_choice for name in ("divergence", "importance", "aggregate", "gradient")}
    if "support.indices" in actual:
        return behind
    found = _compare_output("gradient", of_choice, actual["gradient"])
    return {"gradient": of_choice} if found.status == Status.DIVERGENT else behind


def _compare_group(first: str, standard: Standard, actual: Trace) -> list[Comparison]:
    """Compare the values of the group that begins with `first`."""
    case = standard.case
    if first in PER_TOKEN:
        value = counted(actual[first], standard.truth)
        stage = first.split(".")[0]
        return [compare_numeric(stage, case.id, value, standard.expected(first))]
    if first == "support.student":
        return _compare_support(standard, actual)
    if first == "tail.student":
        return _compare_tail(standard, actual)
    return [_compare_output(first, standard, actual[first])]


def _expected_token(name: str, standard: Standard) -> Expected:
    """What a per-token value is compared with, at the tokens that count."""
    case, truth, reference = standard.case, standard.truth, standard.reference
    return Expected(
        counted(reference[name], truth),
        truth.values[name],
        truth.bounds[name],
        standard.epsilon,
        {ZERO_PROBABILITY: zero_probability(standard)} if name in DIVERGING else {},
        whole=_whole_of(name, case, truth, reference),
        labels=("token",),
    )


def counted(value: Tensor, truth: Truth) -> Array:
    """A `(B, T, …)` value at the tokens that count, `(N, …)` float64; other shapes as they are."""
    array = array_of(value)
    return array[truth.counts] if array.shape[:2] == truth.counts.shape else array


def _expected_output(name: str, standard: Standard) -> Expected:
    """What the loss or its gradient is compared with; these see places of weight zero too.

    The loss may be finite where the reference's is not if each token that counts is finite there,
    or undefined by a probability of zero alone; the gradient at those and at places of weight zero.
    """
    case, truth, reference = standard.case, standard.truth, standard.reference
    by_zero = zero_probability(standard)
    if name == "aggregate":
        finite = np.isfinite(counted(reference["importance"], truth))
        explained = bool((finite | by_zero).all())
        empty, undefined = not finite.size, bool(by_zero.any())
        excused: dict[str, Array | bool] = {
            ZERO_PROBABILITY: explained and undefined,
            ZERO_WEIGHT: explained and not undefined and not empty,
            EMPTY_BATCH: empty,
        }
        labels: tuple[str, ...] = ()
    else:
        shape = truth.values[name].shape
        rows = np.zeros(truth.counts.shape, dtype=bool)
        rows[truth.counts] = by_zero
        excused = {
            ZERO_PROBABILITY: np.broadcast_to(rows[..., None], shape),
            ZERO_WEIGHT: np.broadcast_to(~truth.counts[..., None], shape),
        }
        labels = ("row", "token", "vocabulary_id")
    return Expected(
        array_of(reference[name]),
        truth.values[name],
        truth.bounds[name],
        standard.epsilon,
        excused,
        truth.gradient_scale if name == "gradient" else None,
        _whole_of(name, case, truth, reference),
        labels,
    )


def zero_probability(standard: Standard) -> Array:
    """Tokens `(N,)` whose loss the reference leaves undefined only by a probability of zero.

    Its value is NaN, an entry that may be in the support has the probability zero on one side, and
    the definition (0 · log 0 = 0) gives a finite divergence.
    """
    truth = standard.truth
    empty = ~(np.isfinite(truth.log_p) & np.isfinite(truth.log_q)) & truth.ties.possible
    undefined = np.isnan(counted(standard.reference["importance"], truth))
    return undefined & empty.any(axis=-1) & np.isfinite(truth.values["divergence"])


def _compare_output(name: str, standard: Standard, actual: Tensor) -> Comparison:
    """Compare the loss or its gradient."""
    case, expected = standard.case, standard.expected(name)
    if not actual.dim() and actual.dtype != case.dtype:
        rounding = _rounding_of_result(actual.dtype, expected.truth)
        expected = replace(expected, bound=expected.bound + rounding)
    found = compare_numeric(name, case.id, array_of(actual), expected)
    if name == "gradient" and found.status == Status.DIVERGENT:
        lies = size_and_direction(array_of(actual), expected.reference)
        found = replace(found, note="; ".join(filter(None, (found.note, lies))))
    return found


def _rounding_of_result(dtype: torch.dtype, size: Array) -> Array:
    """The rounding of a loss to the dtype that it is returned in, which is not judged."""
    return torch.finfo(dtype).eps / 2 * np.abs(np.nan_to_num(size, posinf=0.0, neginf=0.0))


def _whole_of(name: str, case: LossCase, truth: Truth, reference: Trace) -> float | None:
    """Limit of a value's distance from the oracle as a whole; log-probs are judged by element."""
    if name.startswith("log_probs"):
        return None
    return norm_limit(name, case, truth, reference)


def _compare_support(standard: Standard, actual: Trace) -> list[Comparison]:
    """Compare the choice of entries, where ties are open, and both sides' log-probs on them."""
    case, truth, reference = standard.case, standard.truth, standard.reference
    indices = actual.get("support.indices")
    if indices is None:
        at = np.broadcast_to(np.arange(truth.log_p.shape[-1]), truth.log_p.shape)
    else:
        at = indices.numpy()[truth.counts]
        choice = _compare_choice(case, truth, reference, at)
        if choice.status == Status.DIVERGENT:
            return [choice]
    found = []
    for side, log, bound in (
        ("student", truth.log_p, truth.student.bound),
        ("teacher", truth.log_q, truth.teacher.bound),
    ):
        value = counted(actual[f"support.{side}"], truth)
        recorded = counted(reference[f"support.{side}"], truth)
        oracle_value = np.take_along_axis(log, at, axis=-1)
        if indices is not None and not _same_order(reference, at, truth):
            recorded = oracle_value
        expected = Expected(
            recorded,
            oracle_value,
            np.take_along_axis(bound, at, axis=-1),
            standard.epsilon,
            labels=("token", "entry"),
        )
        found.append(compare_numeric("support", case.id, value, expected))
    return found


def _same_order(reference: Trace, at: Array, truth: Truth) -> bool:
    """Whether the candidate's indices are the reference's, in the same order."""
    return np.array_equal(at, reference["support.indices"].numpy()[truth.counts])


def _compare_choice(case: LossCase, truth: Truth, reference: Trace, at: Array) -> Comparison:
    """Compare which entries of the vocabulary are in the support."""
    bad = np.flatnonzero(~truth.ties.admits(marked(at, truth.log_p.shape[-1])))
    if not len(bad):
        return compare_exact("support", case.id, "indices", True, True)
    token = int(bad[0])
    expected = reference["support.indices"].numpy()[truth.counts][token]
    name = f"top-k indices of token {token}"
    return compare_exact(
        "support", case.id, name, sorted(at[token].tolist()), sorted(expected.tolist())
    )


def _compare_tail(standard: Standard, actual: Trace) -> list[Comparison]:
    """Compare the distributions on the support after tail or renormalisation.

    Entries are put in the order of their vocabulary ids, the tail last. Tokens where a tie was
    decided differently have another tail and are judged from `divergence` on, as is a support of
    another size, which `support` reports.
    """
    case, truth, reference = standard.case, standard.truth, standard.reference
    theirs = reference["support.indices"].numpy()[truth.counts]
    ours = theirs
    if "support.indices" in actual:
        ours = actual["support.indices"].numpy()[truth.counts]
    if ours.shape != theirs.shape:
        return []
    agree = (np.sort(ours, axis=-1) == np.sort(theirs, axis=-1)).all(axis=-1)
    found = []
    for side in ("student", "teacher"):
        value = counted(actual[f"tail.{side}"], truth)
        recorded = counted(reference[f"tail.{side}"], truth)
        if value.shape != recorded.shape:
            shape = Expected(recorded, recorded, recorded, standard.epsilon)
            found.append(compare_numeric("tail", case.id, value, shape))
            continue
        at = _by_vocabulary(theirs, theirs, recorded.shape[-1], case.student_logits.shape[-1])
        true = np.take_along_axis(truth.values[f"tail.{side}"], at, axis=-1)
        # among equal logits the oracle may have chosen another one, and then has no bound for this
        known = np.isfinite(true) | ~np.isfinite(_by_vocabulary(recorded, theirs, true.shape[-1]))
        agree = agree & known.all(axis=-1)
        expected = Expected(
            _by_vocabulary(recorded, theirs, recorded.shape[-1])[agree],
            true[agree],
            np.take_along_axis(truth.bounds[f"tail.{side}"], at, axis=-1)[agree],
            standard.epsilon,
            labels=("token", "entry"),
        )
        value = _by_vocabulary(value, ours, recorded.shape[-1])[agree]
        found.append(compare_numeric("tail", case.id, value, expected))
    return found


def _by_vocabulary(values: Array, indices: Array, width: int, last: int | None = None) -> Array:
    """Entries `(N, K)` in the order of their vocabulary ids; a further entry stays last.

    `last` is appended as that further entry where `values` has none.
    """
    ordered = np.take_along_axis(values, np.argsort(indices, axis=-1), axis=-1)
    if width == indices.shape[-1]:
        return ordered
    tail = values[:, -1:] if last is None else np.full((len(values), 1), last)
    return np.hstack([ordered, tail])
