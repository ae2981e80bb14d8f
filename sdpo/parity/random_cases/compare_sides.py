"""Compares the fork with the transcription on random cases: bits, dtypes, texts and exceptions."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from sdpo.fixtures import FAMILIES, packaged_family
from sdpo.fixtures.models import load_tokenizer
from sdpo.parity.cases.checked_call import same_bits
from sdpo.parity.live_fork.checkout import CheckoutError
from sdpo.parity.random_cases.random_losses import random_loss
from sdpo.parity.random_cases.random_prompts import random_prompt
from sdpo.parity.random_cases.random_updates import random_update

Values = Mapping[str, object]


class RandomCase(Protocol):
    """A case that both sides can run; the fork runs first."""

    def fork(self) -> Values:
        """Values of the fork by name."""
        ...

    def transcribed(self) -> Values:
        """Values of the transcription under the same names."""
        ...

    def described(self) -> str:
        """What the case is, on one line."""
        ...


@dataclass(frozen=True)
class Difference:
    """A case on which the sides differ.

    Attributes:
        seed: of the case.
        names: values that differ, or the exceptions of both sides.
        case: what the case is.
    """

    seed: int
    names: tuple[str, ...]
    case: str


@dataclass
class FamilyComparison:
    """What came of the random cases of a family.

    Attributes:
        family: `loss`, `reprompt` or `update`.
        cases: how many were run.
        values: how many values both sides gave, equal ones included.
        refused: cases that both sides refused alike, by the class of the exception.
        differences: cases on which they differ.
    """

    family: str
    cases: int = 0
    values: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)

    def add(self, seed: int, case: RandomCase) -> None:
        """Run a case on both sides and count what came of it.

        Raises:
            CheckoutError: the fork cannot be run at all.
        """
        fork, transcribed = _outcome(case.fork), _outcome(case.transcribed)
        self.cases += 1
        if isinstance(fork, str) and fork == transcribed:
            self.refused[fork] += 1
        elif isinstance(fork, str) or isinstance(transcribed, str):
            sides = (side if isinstance(side, str) else "a value" for side in (fork, transcribed))
            names = ("{} of the fork, {} of the transcription".format(*sides),)
            self.differences.append(Difference(seed, names, case.described()))
        else:
            self.values += len(fork)
            if names := differing(fork, transcribed):
                self.differences.append(Difference(seed, tuple(names), case.described()))


def compare_families(
    count: int,
    first_seed: int,
    progress: Callable[[str, int, int], None],
    families: Sequence[str] = FAMILIES,
) -> Iterator[FamilyComparison]:
    """Run random cases of every family, and give what came of each when it is done.

    Args:
        count: of cases, in each family.
        first_seed: of the first case; each further one has the next.
        progress: told the family, cases done, and cases in all.
        families: which ones.

    Raises:
        CheckoutError: the fork cannot be run.
    """
    tokenizer = load_tokenizer(packaged_family("reprompt"))
    updates = packaged_family("update")
    makers: dict[str, Callable[[int], RandomCase]] = {
        "loss": random_loss,
        "reprompt": lambda seed: random_prompt(seed, tokenizer),
        "update": lambda seed: random_update(seed, updates),
    }
    for family in families:
        comparison = FamilyComparison(family)
        for number in range(count):
            progress(family, number, count)
            seed = first_seed + number
            comparison.add(seed, makers[family](seed))
        progress(family, count, count)
        yield comparison


def _outcome(run: Callable[[], Values]) -> Values | str:
    """What a side gives, or the class of what it raises."""
    try:
        with warnings.catch_warnings():
            # of lengths, of gradients that are None: not compared
            warnings.simplefilter("ignore")
            return run()
    except CheckoutError:
        raise
    except Exception as error:
        return type(error).__name__


def differing(fork: Values, transcribed: Values) -> list[str]:
    """Names of values that one side lacks, or that differ in bits, dtype, shape or text."""
    return [
        name
        for name in {**fork, **transcribed}
        if name not in fork or name not in transcribed or not _same(fork[name], transcribed[name])
    ]


def _same(fork: object, transcribed: object) -> bool:
    """Whether two values are the same; NaN is itself."""
    if isinstance(fork, Tensor) and isinstance(transcribed, Tensor):
        return same_bits(fork, transcribed)
    return fork == transcribed or str(fork) == str(transcribed)
