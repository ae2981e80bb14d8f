"""Rules that infer the first stage to depart from several rungs of the ladder together."""

from collections.abc import Callable, Sequence

from sdpo.parity.explain.rungs import Feature, RungResult, RungRow
from sdpo.parity.truth.tolerances import TOLERANCES

SINGLE_TOKEN = (
    Feature.ALPHA_0,
    Feature.ALPHA_1,
    Feature.ALPHA_HALF,
    Feature.ALPHA_QUARTER,
    Feature.SAMPLED,
)
_DISTRIBUTIONS = SINGLE_TOKEN[:-1]
_OTHER_TOKENS = (Feature.DISTINCT_TOKENS, Feature.DISTINCT_SAMPLED, Feature.TWO_ROWS)
_AT_TEMPERATURE = (Feature.TEMPERATURE, Feature.TEMPERATURE_SAMPLED)
_SAME_RANKING = (Feature.RENORMALISED_SAME_RANKING, Feature.TAIL_SAME_RANKING)
_RENORMALISED = (Feature.RENORMALISED_SAME_RANKING, Feature.RENORMALISED)
_WITH_TAIL = (Feature.TAIL_SAME_RANKING, Feature.TAIL)
_RATIOS = (Feature.RATIO_BELOW_CAP, Feature.RATIO_BELOW_CAP_ABOVE_ONE, Feature.RATIOS)

_LOSS_DEPARTS = (RungResult.DEPARTS, RungResult.ONLY_LOSS_DEPARTS)


class LadderResults:
    """What the rungs showed, by feature.

    Rungs that ask for more than the candidate has say nothing: of several features those are meant
    that it has, and at least one.
    """

    def __init__(self, rows: Sequence[RungRow]) -> None:
        self.stages = {row["feature"]: row["stage"] for row in rows}
        self.results = {row["feature"]: row["result"] for row in rows}
        self.factors = {row["feature"]: row["factor"] for row in rows}

    def usable(self, *features: str) -> list[str]:
        """List those of the features that the candidate has."""
        return [f for f in features if self.results[f] != RungResult.UNUSABLE]

    def loss_departs(self, *features: str) -> bool:
        """Tell whether the loss departs on all of these rungs."""
        usable = self.usable(*features)
        return bool(usable) and all(self.results[f] in _LOSS_DEPARTS for f in usable)

    def departs(self, *features: str) -> bool:
        """Tell whether loss or gradient depart on all of these rungs, the loss on at least one."""
        departing = (*_LOSS_DEPARTS, RungResult.ONLY_GRADIENT_DEPARTS)
        return all(self.results[f] in departing for f in self.usable(*features)) and any(
            map(self.loss_departs, features)
        )

    def holds(self, *features: str) -> bool:
        """Tell whether loss and gradient hold on all of these rungs."""
        usable = self.usable(*features)
        return bool(usable) and all(self.results[f] == RungResult.HOLDS for f in usable)

    def one_factor(self, *features: str) -> bool:
        """Tell whether the loss is off by one and the same factor on all of these rungs."""
        factors = [self.factors[f] for f in self.usable(*features)]
        known = [f for f in factors if f is not None]
        if not self.loss_departs(*features) or len(known) < max(2, len(factors)):
            return False
        near = TOLERANCES.ladder_factor_spread * max(abs(f - 1) for f in known)
        return max(known) - min(known) <= near


def _every_token_is_scaled(rungs: LadderResults) -> bool:
    """The loss is off by one factor in all forms of the divergence, or at a temperature alone."""
    # of a loss with one divergence, other tokens tell a factor from another divergence
    few = len(rungs.usable(*SINGLE_TOKEN)) < 2
    forms = (*SINGLE_TOKEN, *_OTHER_TOKENS) if few else SINGLE_TOKEN
    return rungs.one_factor(*forms) or (
        rungs.holds(*SINGLE_TOKEN) and rungs.one_factor(*_AT_TEMPERATURE)
    )


def _only_values(rungs: LadderResults) -> bool:
    """Every token's loss is off, and no gradient is."""
    return all(rungs.results[f] == RungResult.ONLY_LOSS_DEPARTS for f in SINGLE_TOKEN)


def _all_log_probs(rungs: LadderResults) -> bool:
    """Every form of the divergence departs, of several."""
    return len(rungs.usable(*SINGLE_TOKEN)) > 1 and rungs.departs(*SINGLE_TOKEN)


def _sampled_log_probs(rungs: LadderResults) -> bool:
    """The sampled token's log-prob is off, in its own mode and in the ratio, and no other's."""
    if not rungs.holds(*_DISTRIBUTIONS):
        return False
    return rungs.loss_departs(Feature.SAMPLED) and any(map(rungs.loss_departs, _RATIOS))


def _support_at_temperature(rungs: LadderResults) -> bool:
    """The temperature reaches the sampled token and not the distribution."""
    holding = (Feature.TEMPERATURE_SAMPLED, *SINGLE_TOKEN)
    return rungs.loss_departs(Feature.TEMPERATURE) and rungs.holds(*holding)


def _support_is_another(rungs: LadderResults) -> bool:
    """Top-k departs with and without tail, whatever the ranking, and the tail is not the cause."""
    return (
        rungs.holds(*SINGLE_TOKEN)
        and rungs.loss_departs(*_SAME_RANKING)
        and (rungs.holds(Feature.TAIL_OF_ONE) or rungs.loss_departs(Feature.RENORMALISED_WHOLE))
    )


def _renormalised_support_is_another(rungs: LadderResults) -> bool:
    """Without a tail top-k departs whatever the ranking, but not where all choices are equal."""
    indifferent = (Feature.RENORMALISED_ONE, Feature.RENORMALISED_WHOLE)
    holding = (*SINGLE_TOKEN, *indifferent, *_WITH_TAIL)
    return rungs.loss_departs(*_RENORMALISED) and rungs.holds(*holding)


def _support_is_short_of_the_vocabulary(rungs: LadderResults) -> bool:
    """Top-k departs only where K reaches the vocabulary, so that all entries are the support."""
    holding = (*SINGLE_TOKEN, Feature.RENORMALISED_ONE, *_RENORMALISED, *_WITH_TAIL)
    return rungs.loss_departs(Feature.RENORMALISED_WHOLE) and rungs.holds(*holding)


_RULES: tuple[tuple[str, Callable[[LadderResults], bool]], ...] = (
    ("aggregate", _every_token_is_scaled),
    ("aggregate", _only_values),
    ("log_probs", _all_log_probs),
    ("log_probs", _sampled_log_probs),
    ("support", _support_at_temperature),
    ("support", _support_is_another),
    ("support", _renormalised_support_is_another),
    ("support", _support_is_short_of_the_vocabulary),
)


def inferred_stage(rows: Sequence[RungRow]) -> str | None:
    """Name the stage that the results of the rungs point to: by the first rule that applies.

    Where none does it is the stage of the first rung whose loss departs; `gradient` where only
    gradients do, None where all rungs hold.
    """
    rungs = LadderResults(rows)
    departing = [feature for feature in rungs.stages if rungs.loss_departs(feature)]
    if not departing:
        gradient = RungResult.ONLY_GRADIENT_DEPARTS in rungs.results.values()
        return "gradient" if gradient else None
    by_rule = (stage for stage, rule in _RULES if rule(rungs))
    return next(by_rule, rungs.stages[departing[0]])
