"""Pairs of scripts from which a trainer must learn the same, by the relation that says so.

The relations are those of the loss (`relations/catalogue.py`); here a batch is cut, padded,
permuted and masked in the world around the trainer.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from sdpo.parity.trainers.scenarios.catalogue import BY_ID, PLAIN, with_settings
from sdpo.parity.trainers.scenarios.fragments import MIXED, OTHERS, SUMS, TWO_GROUPS
from sdpo.parity.trainers.scenarios.scenario import Generation, Rollout, Scenario
from sdpo.parity.trainers.scenarios.tiny_model import EXCHANGED
from sdpo.parity.trainers.scenarios.training_record import Tensors

_Place = Callable[[Tensors], Tensors]


def _as_it_is(gradient: Tensors) -> Tensors:
    """Return the gradient as it is."""
    return gradient


@dataclass(frozen=True)
class Pair:
    """Two scripts that must give the same loss and first gradient.

    Attributes:
        case: name in reports.
        left: the script.
        right: the other one; None: loss and gradient must be zero.
        place: puts the right one's gradient in the order of the left one's.
    """

    case: str
    left: Scenario
    right: Scenario | None
    place: _Place = _as_it_is


_NUMBERS = (1, 2, 5, 6, 8, 9, 30, 31)
EVEN = tuple(Rollout(f"The answer is {n}.", float(n in (1, 2, 8, 9))) for n in _NUMBERS)
"""Eight rows of equally many tokens; with two successes in each group all have a signal."""

_ONE_BATCH = {"micro_batch_size": 8}
_HALVES = {"micro_batch_size": 4, "accumulation": 2, "steps_per_generation": 2}
_QUARTERS = {"micro_batch_size": 2, "accumulation": 4, "steps_per_generation": 4}
_PROCESSES = {"micro_batch_size": 4, "processes": 2}


def _split(case: str, generation: Generation, parts: dict[str, int]) -> Pair:
    """Pair a generation in one batch with the same in parts."""
    left, right = (
        replace(PLAIN, id="", generations=(generation,), **sizes) for sizes in (_ONE_BATCH, parts)
    )
    return Pair(case, left, right)


def _splits(parts: dict[str, int]) -> list[Pair]:
    """Pair equally long rows, where every way of counting agrees, and ragged ones."""
    even = Generation(SUMS[:2], EVEN)
    return [_split("even", even, parts), _split("ragged", TWO_GROUPS, parts)]


def _disguised(disguise: str, place: _Place = _as_it_is) -> list[Pair]:
    """Pair the plain script with the same in a world that is changed without effect."""
    return [Pair("plain", PLAIN, replace(PLAIN, disguise=disguise), place)]


def _row_order() -> list[Pair]:
    """Reorder the rows of a group, but not its successes among each other; exchange two groups."""
    rows = Generation(SUMS[:1], tuple(MIXED[row] for row in (1, 0, 3, 2)))
    groups = Generation((SUMS[1], SUMS[0]), OTHERS + MIXED)
    one_batch = replace(PLAIN, generations=(TWO_GROUPS,), micro_batch_size=8)
    return [
        Pair("rows", PLAIN, replace(PLAIN, generations=(rows,))),
        Pair("groups", one_batch, replace(one_batch, generations=(groups,))),
    ]


def _exchanged(gradient: Tensors) -> Tensors:
    """Exchange the gradients of the two entries of the vocabulary that changed places."""
    first, second = EXCHANGED
    head = gradient["lm_head.weight"].clone()
    head[[first, second]] = head[[second, first]]
    return {**gradient, "lm_head.weight": head}


def _equal_sides() -> list[Pair]:
    """Ask the teacher what the student is asked, before the first update."""
    same = with_settings(PLAIN, {"reprompt_template": "{prompt}"})
    return [Pair("plain", same, None)]


PAIRS: dict[str, list[Pair]] = {
    "micro-batch split": _splits(_HALVES),
    "process split": _splits(_PROCESSES),
    "gradient accumulation": _splits(_QUARTERS),
    "padding side": _disguised("left padding"),
    "extra padding": _disguised("extra padding"),
    "row order": _row_order(),
    "masked row": [Pair("group", BY_ID["T10"], PLAIN)],
    "nothing counts": [Pair("group", BY_ID["T11"], None)],
    "logit shift": _disguised("shifted head"),
    "vocabulary order": _disguised("exchanged head", _exchanged),
    "equal sides": _equal_sides(),
}

SCALE_OF_ZERO = PLAIN
"""Where nothing may be left, this scenario's gradient says how much rounding is."""


def all_scripts() -> list[Scenario]:
    """Return every script of every pair."""
    pairs = [pair for pairs in PAIRS.values() for pair in pairs]
    return [s for pair in pairs for s in (pair.left, pair.right) if s is not None]
