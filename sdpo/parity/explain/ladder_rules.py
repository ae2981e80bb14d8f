"""What the rungs of the ladder say together: rules that name a stage from several of them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sdpo.parity.truth.tolerances import TOLERANCES

LOSS_HOLDS = "holds"
LOSS_DEPARTS = "departs"
ONLY_LOSS_DEPARTS = "loss departs"
GRADIENT_DEPARTS = "gradient departs"
UNUSABLE = "not covered"


class Reading:
    """What the rungs showed, by feature."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.stages = {row["feature"]: row["stage"] for row in rows}
        self.results = {row["feature"]: row["result"] for row in rows}
        self.factors = {row["feature"]: row.get("factor") for row in rows}

    def departs(self, *features: str) -> bool:
        """Whether the loss departs on all of these rungs."""
        return all(self.results[f] in (LOSS_DEPARTS, ONLY_LOSS_DEPARTS) for f in features)

    def moves(self, *features: str) -> bool:
        """Whether loss or gradient depart on all of these rungs, the loss on at least one."""
        departing = {LOSS_DEPARTS, ONLY_LOSS_DEPARTS, GRADIENT_DEPARTS}
        return all(self.results[f] in departing for f in features) and any(
            map(self.departs, features)
        )

    def holds(self, *features: str) -> bool:
        """Whether loss and gradient hold on all of these rungs."""
        return all(self.results[f] == LOSS_HOLDS for f in features)

    def one_factor(self, *features: str) -> bool:
        """Whether the loss is off by one and the same factor on all of these rungs."""
        if not self.departs(*features):
            return False
        factors = [self.factors[f] for f in features]
        known = [f for f in factors if f is not None]
        if len(known) < len(factors):
            return False
        near = TOLERANCES.ladder_factor_spread * max(abs(f - 1) for f in known)
        return max(known) - min(known) <= near


def scaled_as_a_whole(rungs: Reading) -> bool:
    """Every token is off by one factor, in all forms of the divergence, or at a temperature."""
    at_temperature = ("temperature", "temperature, sampled")
    return rungs.one_factor(*SINGLE) or (rungs.holds(*SINGLE) and rungs.one_factor(*at_temperature))


def only_values(rungs: Reading) -> bool:
    """Every token's loss is off, and no gradient is."""
    return all(rungs.results[f] == ONLY_LOSS_DEPARTS for f in SINGLE)


def only_support_at_temperature(rungs: Reading) -> bool:
    """The temperature reaches the sampled token and not the distribution."""
    return rungs.departs("temperature") and rungs.holds("temperature, sampled", *SINGLE)


def sampled_token_everywhere(rungs: Reading) -> bool:
    """The sampled token's log-prob is off, in its own mode and in the ratio."""
    ratios = ("ratio below cap", "ratio between one and cap", "ratios of several tokens")
    return rungs.departs("sampled token") and any(map(rungs.departs, ratios))


def support_is_another(rungs: Reading) -> bool:
    """Top-k departs with and without tail, whatever the ranking, and not for want of a rest."""
    return rungs.departs(*SAME_RANKING) and (
        rungs.holds("tail of one token") or rungs.departs("renormalised, whole vocabulary")
    )


def renormalised_support_is_another(rungs: Reading) -> bool:
    """Without a tail top-k departs whatever the ranking, and not where the choice is no matter."""
    indifferent = ("renormalised, one entry", "renormalised, whole vocabulary")
    return rungs.departs(*RENORMALISED) and rungs.holds(*indifferent, *WITH_TAIL)


def short_of_the_vocabulary(rungs: Reading) -> bool:
    """Only where K reaches the vocabulary top-k departs, and there all entries are the support."""
    fewer = ("renormalised, one entry", *RENORMALISED, *WITH_TAIL)
    return rungs.departs("renormalised, whole vocabulary") and rungs.holds(*fewer)


SINGLE = ("alpha 0", "alpha 1", "alpha 0.5", "alpha 0.25", "sampled token")
DISTRIBUTIONS = SINGLE[:-1]
SAME_RANKING = ("top-k renormalised, same ranking", "top-k tail, same ranking")
RENORMALISED = ("top-k renormalised, same ranking", "top-k renormalised")
WITH_TAIL = ("top-k tail, same ranking", "top-k tail")
RULES: tuple[tuple[str, Callable[[Reading], bool]], ...] = (
    ("aggregate", scaled_as_a_whole),
    ("aggregate", only_values),
    ("log_probs", lambda rungs: rungs.moves(*SINGLE)),
    ("log_probs", lambda rungs: rungs.holds(*DISTRIBUTIONS) and sampled_token_everywhere(rungs)),
    ("support", only_support_at_temperature),
    ("support", lambda rungs: rungs.holds(*SINGLE) and support_is_another(rungs)),
    ("support", lambda rungs: rungs.holds(*SINGLE) and renormalised_support_is_another(rungs)),
    ("support", lambda rungs: rungs.holds(*SINGLE) and short_of_the_vocabulary(rungs)),
)


def inferred_stage(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The stage that the results of the rungs point to."""
    rungs = Reading(rows)
    departing = [feature for feature in rungs.stages if rungs.departs(feature)]
    if not departing:
        gradient = GRADIENT_DEPARTS in rungs.results.values()
        return "gradient" if gradient else None
    for stage, rule in RULES:
        if rule(rungs):
            return stage
    return rungs.stages[departing[0]]
