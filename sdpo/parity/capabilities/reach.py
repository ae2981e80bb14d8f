"""Finds out which values of the generated cases' factors a loss takes, and moves cases there.

A loss says what it lacks by its signature, by a declaration, or by raising `NotImplementedError`.
Whichever it is, each value is tried once, on a case that is otherwise plain.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product

from sdpo.parity.capabilities.absent_settings import Settings, Trace
from sdpo.parity.cases.checked_call import BrokenGradientError, CandidateError, NotCoveredError
from sdpo.parity.cases.loss_case import LOSS_SETTINGS
from sdpo.parity.generated.factors import Row, Value, table
from sdpo.parity.generated.make_case import make_case

_OPTIONS = ("temperature", "clip", "weights", "signal", "lengths", "aggregation", "alpha")
"""Factors of which each value is tried alone."""

_WORDS = {
    "temperature": "temperature",
    "clip": "ratio",
    "weights": "rollout weights",
    "signal": "rows without teacher",
    "lengths": "tokens that do not count",
}
_MODES = {
    "sampled": "sampled tokens",
    "full_vocab": "full vocabulary",
    "topk_tail": "tail",
    "topk_renorm": "renormalised top-k",
}
_COUNTS = ("", "one mean", "two means", "three means")


@dataclass(frozen=True)
class Reach:
    """What a loss takes.

    Attributes:
        base: the plainest row that it takes.
        taken: the values that it takes, by factor; factors that are not named are free.
        supports: the K of a top-k that it takes, by mode.
        fixed: settings that it has at values which the factors lack.
    """

    base: Row
    taken: Mapping[str, tuple[Value, ...]]
    supports: Mapping[str, tuple[Value, ...]]
    fixed: Mapping[str, float] = field(default_factory=dict)

    @property
    def lacks(self) -> list[str]:
        """Say what the loss lacks, in words; empty if it takes everything."""
        factors = table().factors
        left = {f: [v for v in factors[f] if v not in values] for f, values in self.taken.items()}
        modes = [_MODES[str(mode)] for mode in factors["mode"] if mode not in self.supports]
        if {"tail", "renormalised top-k"} <= set(modes):
            modes = ["top-k" if m == "tail" else m for m in modes if m != "renormalised top-k"]
        few = [f"K but {k}"] if (k := self.fixed.get("distillation_topk")) else []
        alphas = [f"{value:g}" for value in self.taken["alpha"]]
        if "alpha" in self.fixed:
            alphas = [f"{self.fixed['alpha']:g}"]
        if self.supports.keys() != {"sampled"} and (left["alpha"] or "alpha" in self.fixed):
            few.append(f"alpha but {', '.join(alphas)}")
        options = [word for factor, word in _WORDS.items() if left[factor]]
        means = [_COUNTS[len(left["aggregation"])]] if left["aggregation"] else []
        return [*modes, *few, *options, *means]

    @property
    def base_settings(self) -> dict[str, object]:
        """The settings of the loss at the plainest row."""
        config = make_case(self.base, 0, self.fixed).config
        settings = {name: getattr(config, name) for name in LOSS_SETTINGS}
        if not str(self.base["mode"]).startswith("topk"):
            # without effect there, and what a top-k has that nothing else is said of
            settings["distillation_add_tail"] = "topk_tail" in self.supports
        return settings

    def row(self, row: Row) -> Row | None:
        """Move a row to the values that the loss takes; None where no such row keeps the rules."""
        moved = dict(row)
        for factor, values in self.taken.items():
            moved[factor] = self._nearest(factor, row[factor], values)
        moved["mode"] = self._nearest("mode", row["mode"], tuple(self.supports))
        supports = self.supports[str(moved["mode"])]
        first = self._nearest("support", row["support"], supports)
        for support, logits in product([first, *supports], [row["logits"], "ordinary"]):
            found = {**moved, "support": support, "logits": logits}
            if moved["mode"] == "sampled":
                found["alpha"] = 1.0
            if table().allows(found):
                return found
        return None

    def _nearest(self, factor: str, value: Value, values: tuple[Value, ...]) -> Value:
        """The value itself where it is taken, else one that its place in the table chooses."""
        if value in values:
            return value
        return values[table().factors[factor].index(value) % len(values)]


def reach_of(trace: Trace, fixed: Settings) -> Reach | None:
    """Try each value of each factor; None where no plain row is taken.

    Args:
        trace: calls the loss on a case.
        fixed: settings that it has, by its signature or a declaration.
    """
    numbers = {name: value for name, value in fixed.items() if isinstance(value, (int, float))}
    rare = {name: value for name, value in numbers.items() if _is_rare(name, value)}

    def takes(row: Row) -> bool:
        try:
            trace(make_case(row, 0, rare))
        except NotCoveredError:
            return False
        except (BrokenGradientError, CandidateError):
            return True
        return True

    plain = {factor: values[0] for factor, values in table().factors.items()}
    base = next((row for row in _plain_rows(plain) if takes(row)), None)
    if base is None:
        return None
    taken = {factor: tuple(_taken(takes, base, factor)) for factor in _OPTIONS}
    return Reach(base, taken, _supports(takes, base), rare)


def _is_rare(name: str, value: float) -> bool:
    """Whether no generated case has a setting at this value."""
    unusual = name == "alpha" and value not in table().factors["alpha"]
    return unusual or name == "distillation_topk"


def _plain_rows(plain: Row) -> Iterator[Row]:
    """Rows without an option, the plainest first."""
    factors = table().factors
    for mode, alpha, mean in product(factors["mode"], factors["alpha"], factors["aggregation"]):
        support = "some" if str(mode).startswith("topk") else "none"
        row = {**plain, "mode": mode, "support": support, "alpha": alpha, "aggregation": mean}
        if table().allows(row):
            yield row


def _taken(takes: Callable[[Row], bool], base: Row, factor: str) -> Iterator[Value]:
    """The values of a factor that are taken where the rest is plain."""
    for value in table().factors[factor]:
        row = {**base, factor: value}
        if factor == "clip" and value != "none":
            row["ratio"] = "near 1"
        # a row that breaks a rule cannot be tried beside this base
        if row == base or not table().allows(row) or takes(row):
            yield value


def _supports(takes: Callable[[Row], bool], base: Row) -> dict[str, tuple[Value, ...]]:
    """The K that are taken, by mode; modes that are not taken are left out."""
    found: dict[str, tuple[Value, ...]] = {}
    for mode in table().factors["mode"]:
        rows: Iterable[Row] = (
            {**base, "mode": mode, "support": support, "alpha": alpha}
            for support in table().factors["support"]
            for alpha in [1.0 if mode == "sampled" else base["alpha"]]
        )
        values = tuple(row["support"] for row in rows if table().allows(row) and takes(row))
        if values:
            found[str(mode)] = values
    return found
