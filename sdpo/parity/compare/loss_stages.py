"""Loss stages of a candidate against the reference, on one case."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sdpo.parity.cases.checked_call import same_bits
from sdpo.parity.compare.agreement import PER_TOKEN, counted
from sdpo.parity.compare.clamped_divergence import with_clamps
from sdpo.parity.compare.comparison import Comparison, Expected, compare_exact, compare_numeric
from sdpo.parity.compare.evaluated_case import EvaluatedCase
from sdpo.parity.compare.statuses import Status
from sdpo.parity.truth.followed_choice import choice_shown
from sdpo.parity.truth.norm_limit import size_and_direction
from sdpo.parity.truth.oracle import Array, array_of, marked
from sdpo.parity.truth.rounded_token_counts import difference

ORDER = ("log_probs", "support", "tail", "divergence", "importance", "aggregate", "gradient")

_OUTCOMES = ("aggregate", "gradient")

Trace = Mapping[str, Tensor]


def stage_of(name: str) -> str | None:
    """The stage of a value, None for one that is not compared."""
    stage = name.split(".")[0]
    return stage if stage in ORDER else None


_GROUPS = (
    *((name,) for name in PER_TOKEN),
    ("support.student", "support.teacher", "support.indices"),
    ("tail.student", "tail.teacher", "support.indices"),
    ("aggregate",),
    ("gradient",),
)
"""Values that are compared together; a group is compared if its first value is exposed."""


def compare_loss(evaluated: EvaluatedCase, actual: Trace) -> list[Comparison]:
    """Compare every stage value that the candidate exposes.

    Args:
        evaluated: the inputs, and what judges them.
        actual: stage values of the candidate, under the reference's names.

    Returns:
        One comparison for each value, in stage order.
    """
    comparisons = _compare_values(evaluated, actual)
    if _outcome_diverges(comparisons) and evaluated.exact is not None:
        with_exact_counts = _compare_values(evaluated.exact, actual)
        if not _outcome_diverges(with_exact_counts):
            before = [c for c in comparisons if c.stage not in _OUTCOMES]
            after = [c for c in with_exact_counts if c.stage in _OUTCOMES]
            note = difference(evaluated.case)
            return before + [replace(comparison, note=note) for comparison in after]
    return comparisons


def _outcome_diverges(comparisons: Sequence[Comparison]) -> bool:
    """Whether loss or gradient diverge."""
    return any(c.status == Status.DIVERGENT for c in comparisons if c.stage in _OUTCOMES)


def _compare_values(evaluated: EvaluatedCase, actual: Trace) -> list[Comparison]:
    """Compare every stage value that is exposed."""
    comparisons: list[Comparison] = []
    reference = evaluated.reference
    after_choice = _after_choice(evaluated, actual) if evaluated.truth.ties.open.any() else {}
    for names in _GROUPS:
        first, shown = names[0], tuple(name for name in names if name in actual)
        if first not in actual:
            continue
        judge = after_choice.get(first, evaluated)
        if all(name in reference and same_bits(actual[name], reference[name]) for name in shown):
            if shown not in evaluated.of_reference:
                evaluated.of_reference[shown] = _compare_group(first, evaluated, reference, shown)
            of_group = evaluated.of_reference[shown]
        else:
            of_group = _compare_group(first, judge, actual, shown)
        if first == "gradient":
            of_group = [with_clamps(of_group[0], judge, actual)]
        comparisons.extend(of_group)
    return sorted(comparisons, key=lambda comparison: ORDER.index(comparison.stage))


def _after_choice(evaluated: EvaluatedCase, actual: Trace) -> dict[str, EvaluatedCase]:
    """What judges the values behind a choice among ties, by their names: the choice that was made.

    A gradient that is not that of any choice says nothing about the loss, which then may be that of
    all choices.
    """
    indices = choice_shown(evaluated.case, evaluated.truth, evaluated.reference, actual)
    if indices is None:
        return {}
    of_choice = evaluated.choosing(indices)
    behind = {name: of_choice for name in ("divergence", "importance", "aggregate", "gradient")}
    if "support.indices" in actual:
        return behind
    gradient = _compare_output("gradient", of_choice, actual["gradient"])
    return {"gradient": of_choice} if gradient.status == Status.DIVERGENT else behind


def _compare_group(
    first: str, evaluated: EvaluatedCase, trace: Trace, names: Sequence[str]
) -> list[Comparison]:
    """Compare the values of the group that begins with `first`, of which the trace has `names`."""
    if first in PER_TOKEN:
        value = counted(trace[first], evaluated.truth)
        stage = first.split(".")[0]
        return [compare_numeric(stage, evaluated.case.id, value, evaluated.expected(first))]
    indices = trace["support.indices"] if "support.indices" in names else None
    if first == "support.student":
        return _compare_support(evaluated, trace, indices)
    if first == "tail.student":
        return _compare_tail(evaluated, trace, indices)
    return [_compare_output(first, evaluated, trace[first])]


def _compare_output(name: str, evaluated: EvaluatedCase, actual: Tensor) -> Comparison:
    """Compare the loss or its gradient."""
    case, expected = evaluated.case, evaluated.expected(name)
    if not actual.dim() and actual.dtype != case.dtype:
        rounding = _rounding_of_result(actual.dtype, expected.truth)
        expected = replace(expected, bound=expected.bound + rounding)
    comparison = compare_numeric(name, case.id, array_of(actual), expected)
    if name == "gradient" and comparison.status == Status.DIVERGENT:
        notes = (comparison.note, size_and_direction(array_of(actual), expected.reference))
        comparison = replace(comparison, note="; ".join(filter(None, notes)))
    return comparison


def _rounding_of_result(dtype: torch.dtype, size: Array) -> Array:
    """The rounding of a loss to the dtype that it is returned in, which is not judged."""
    return torch.finfo(dtype).eps / 2 * np.abs(np.nan_to_num(size, posinf=0.0, neginf=0.0))


def _compare_support(
    evaluated: EvaluatedCase, actual: Trace, indices: Tensor | None
) -> list[Comparison]:
    """Compare the choice of entries, where ties are open, and both sides' log-probs on them."""
    case, truth, reference = evaluated.case, evaluated.truth, evaluated.reference
    entries = np.broadcast_to(np.arange(truth.log_p.shape[-1]), truth.log_p.shape)
    in_order = True
    if indices is not None:
        entries = indices.numpy()[truth.counts]
        choice = _compare_choice(evaluated, entries)
        if choice.status == Status.DIVERGENT:
            return [choice]
        recorded = reference["support.indices"].numpy()[truth.counts]
        in_order = np.array_equal(entries, recorded)
    comparisons = []
    for side, of_side in (("student", truth.student), ("teacher", truth.teacher)):
        oracle_value = np.take_along_axis(of_side.value, entries, axis=-1)
        expected = Expected(
            counted(reference[f"support.{side}"], truth) if in_order else oracle_value,
            oracle_value,
            np.take_along_axis(of_side.bound, entries, axis=-1),
            torch.finfo(case.dtype).eps,
            labels=("token", "entry"),
        )
        value = counted(actual[f"support.{side}"], truth)
        comparisons.append(compare_numeric("support", case.id, value, expected))
    return comparisons


def _compare_choice(evaluated: EvaluatedCase, entries: Array) -> Comparison:
    """Compare which entries `(N, K)` of the vocabulary are in the support."""
    case, truth = evaluated.case, evaluated.truth
    wrong = np.flatnonzero(~truth.ties.admits(marked(entries, truth.log_p.shape[-1])))
    if not len(wrong):
        return compare_exact("support", case.id, "indices", True, True)
    token = int(wrong[0])
    expected = evaluated.reference["support.indices"].numpy()[truth.counts][token]
    name = f"top-k indices of token {token}"
    return compare_exact(
        "support", case.id, name, sorted(entries[token].tolist()), sorted(expected.tolist())
    )


def _compare_tail(
    evaluated: EvaluatedCase, actual: Trace, indices: Tensor | None
) -> list[Comparison]:
    """Compare the distributions on the support after tail or renormalisation.

    Entries are put in the order of their vocabulary ids, the tail last. Tokens where a tie was
    decided differently have another tail and are judged from `divergence` on, as is a support of
    another size, which `support` reports.
    """
    case, truth, reference = evaluated.case, evaluated.truth, evaluated.reference
    theirs = reference["support.indices"].numpy()[truth.counts]
    ours = theirs if indices is None else indices.numpy()[truth.counts]
    if ours.shape != theirs.shape:
        return []
    epsilon = torch.finfo(case.dtype).eps
    agree = (np.sort(ours, axis=-1) == np.sort(theirs, axis=-1)).all(axis=-1)
    comparisons = []
    for name in ("tail.student", "tail.teacher"):
        value, recorded = counted(actual[name], truth), counted(reference[name], truth)
        width = recorded.shape[-1]
        if value.shape != recorded.shape:
            shape = Expected(recorded, recorded, recorded, epsilon)
            comparisons.append(compare_numeric("tail", case.id, value, shape))
            continue
        at = _by_vocabulary(theirs, theirs, width, case.student_logits.shape[-1])
        true = np.take_along_axis(truth.values[name], at, axis=-1)
        recorded = _by_vocabulary(recorded, theirs, width)
        # among equal logits the oracle may have chosen another one, and then has no bound for this
        agree = agree & (np.isfinite(true) | ~np.isfinite(recorded)).all(axis=-1)
        expected = Expected(
            recorded[agree],
            true[agree],
            np.take_along_axis(truth.bounds[name], at, axis=-1)[agree],
            epsilon,
            labels=("token", "entry"),
        )
        value = _by_vocabulary(value, ours, width)[agree]
        comparisons.append(compare_numeric("tail", case.id, value, expected))
    return comparisons


def _by_vocabulary(values: Array, indices: Array, width: int, last: int | None = None) -> Array:
    """Entries `(N, K)` in the order of their vocabulary ids; a further entry stays last.

    `last` is appended as that further entry where `values` has none.
    """
    ordered = np.take_along_axis(values, np.argsort(indices, axis=-1), axis=-1)
    if width == indices.shape[-1]:
        return ordered
    tail = values[:, -1:] if last is None else np.full((len(values), 1), last)
    return np.hstack([ordered, tail])
