"""Compute intervals of pass rates, and compare two runs over the same problems.

The interval of a proportion and McNemar's test are exact or closed-form, from `scipy.stats`; the
interval of a mean is a bootstrap over problems. `scipy` is imported where it is needed: loading
its statistics takes longer than most commands.
"""

import dataclasses
import math
import statistics
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Interval:
    """Holds an estimate with its confidence interval; `level` is the coverage aimed at."""

    estimate: float
    low: float
    high: float
    level: float = 0.95


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level is {level}; it must lie between 0 and 1")


def wilson(passed: int, total: int, level: float = 0.95) -> Interval:
    """Compute the Wilson score interval of a proportion, such as pass@1 of a greedy run.

    Raises:
        ValueError: If `total` is not positive or `passed` lies outside 0 to `total`.
    """
    _check_level(level)
    if total < 1 or not 0 <= passed <= total:
        raise ValueError(f"{passed} of {total}: needs 0 <= passed <= total and total >= 1")
    from scipy.stats import binomtest

    interval = binomtest(passed, total).proportion_ci(level, method="wilson")
    return Interval(passed / total, float(interval.low), float(interval.high), level)


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Unbiased estimate of pass@k for one problem: `1 - C(n - c, k) / C(n, k)`.

    Args:
        samples: Number n of samples drawn.
        passed: Number c of those that passed.
        k: Size of the subset of which one must pass.

    Raises:
        ValueError: Unless `0 <= passed <= samples` and `1 <= k <= samples`.

    Source: Chen et al. 2021, https://arxiv.org/abs/2107.03374, equation 1.
    """
    if not 0 <= passed <= samples or not 1 <= k <= samples:
        raise ValueError(
            f"n={samples}, c={passed}, k={k}: needs 0 <= c <= n and 1 <= k <= n samples"
        )
    return 1.0 - math.comb(samples - passed, k) / math.comb(samples, k)


def mean_pass_at_k(counts: Sequence[tuple[int, int]], k: int) -> float:
    """Average `pass_at_k` over problems given as (samples, passed); raises `ValueError`."""
    if not counts:
        raise ValueError("no problems: there is no mean pass@k")
    return statistics.fmean(pass_at_k(samples, passed, k) for samples, passed in counts)


def unseen_fraction(problems: int, level: float = 0.95) -> float:
    """Compute the largest fraction of problems of a kind of which a sample holds none, `(0, 1)`.

    If the fraction were larger, the chance that none of them is among `problems` drawn ones would
    be less than `(1 - level) / 2`.

    Args:
        problems: Number of problems in the sample.
        level: Coverage of a two-sided interval.

    Raises:
        ValueError: If there are no problems.

    Source: Clopper and Pearson 1934, https://doi.org/10.1093/biomet/26.4.404, with no success: the
    bound is `1 - (α/2)^(1/n)`, about 3.7 / n (the "rule of three" for a one-sided one).
    """
    _check_level(level)
    if problems < 1:
        raise ValueError(f"{problems} problems: needs at least one")
    return 1 - ((1 - level) / 2) ** (1 / problems)


def bootstrap(
    values: Sequence[float],
    level: float = 0.95,
    *,
    limits: tuple[float, float],
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Compute the percentile bootstrap interval of the mean over problems.

    Where all values are equal, resampling shows no variation, which is not certainty: other
    problems may have other values. The interval is then what an `unseen_fraction` of them, with
    the least or the greatest value possible, would make of the mean.

    Args:
        values: One value per problem, such as its pass@k or pass/fail as 1 and 0.
        level: Coverage aimed at.
        limits: Least and greatest value that a problem may have.
        resamples: Number of resamples.
        seed: Of `numpy.random.default_rng`, which draws the resamples.

    Raises:
        ValueError: If there are no values or no resamples, or a value lies outside the limits.
    """
    _check_level(level)
    if not values or resamples < 1:
        raise ValueError(f"{len(values)} values, {resamples} resamples: needs at least one of each")
    least, greatest = limits
    if not least <= min(values) <= max(values) <= greatest:
        raise ValueError(f"values from {min(values)} to {max(values)} must lie within {limits}")
    if min(values) == max(values):
        unseen, value = unseen_fraction(len(values), level), values[0]
        low, high = value - unseen * (value - least), value + unseen * (greatest - value)
        return Interval(value, low, high, level)
    return Interval(statistics.fmean(values), *_resampled(values, level, resamples, seed), level)


def _resampled(
    values: Sequence[float], level: float, resamples: int, seed: int
) -> tuple[float, float]:
    import numpy as np
    from scipy import stats

    interval = stats.bootstrap(
        (np.asarray(values, dtype=float),),
        np.mean,
        n_resamples=resamples,
        batch=1000,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


@dataclasses.dataclass(frozen=True)
class PairedComparison:
    """Compares two runs over the same problems.

    `only_first` and `only_second` count the problems that one run passes and the other does not;
    `p_value` is two-sided. `verdict` is `first`, `second` or `cannot distinguish`.
    """

    problems: int
    only_first: int
    only_second: int
    p_value: float
    difference: float
    minimum_detectable: float
    verdict: str


def mcnemar(only_first: int, only_second: int) -> float:
    """Compute the exact two-sided p-value of McNemar's test: a fair coin over discordant problems.

    Raises:
        ValueError: If a count is negative.
    """
    if min(only_first, only_second) < 0:
        raise ValueError(f"counts {only_first} and {only_second} must not be negative")
    if only_first == only_second:
        # Also where there is no discordant problem, of which `binomtest` makes an error.
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(only_first, only_first + only_second).pvalue)


def minimum_detectable_effect(
    problems: int, discordant: float, *, alpha: float = 0.05, power: float = 0.8
) -> float:
    """Smallest difference of pass rates that a paired test would find with the given power.

    Args:
        problems: Number of problems.
        discordant: Fraction of problems on which the runs differ.
        alpha: Two-sided level of the test.
        power: Probability of finding the difference.

    Returns:
        A difference of pass rates; infinity if no difference within `discordant` would be found.

    Raises:
        ValueError: If an argument lies outside its range.

    Source: normal approximation of Connor 1987, https://doi.org/10.2307/2531961, solved for the
    difference.
    """
    if problems < 1 or not 0 <= discordant <= 1 or not (0 < alpha < 1 and 0 < power < 1):
        raise ValueError(
            f"problems={problems}, discordant={discordant}, alpha={alpha}, power={power}: needs "
            "problems >= 1, 0 <= discordant <= 1 and alpha, power between 0 and 1"
        )
    normal = statistics.NormalDist()
    a, b = normal.inv_cdf(1 - alpha / 2), normal.inv_cdf(power)
    # d sqrt(n) = a sqrt(D) + b sqrt(D - d^2), a quadratic equation in d.
    squared = a * math.sqrt(discordant * problems)
    root = squared**2 - (problems + b * b) * discordant * (a * a - b * b)
    effect = (squared + math.sqrt(max(0.0, root))) / (problems + b * b)
    return effect if 0 < effect <= discordant else math.inf


def compare(
    first: Sequence[bool], second: Sequence[bool], *, alpha: float = 0.05, power: float = 0.8
) -> PairedComparison:
    """Compare two runs problem by problem.

    Args:
        first: Whether each problem passed in the first run.
        second: The same for the second run, in the same order.
        alpha: Level at which a difference counts.
        power: Power for the minimum detectable effect.

    Raises:
        ValueError: If the runs have different lengths or none.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} and {len(second)} problems: needs the same, at least one")
    pairs = list(zip(first, second, strict=True))
    only_first = sum(bool(a) and not b for a, b in pairs)
    only_second = sum(bool(b) and not a for a, b in pairs)
    p_value = mcnemar(only_first, only_second)
    problems = len(pairs)
    verdict = "cannot distinguish"
    if p_value < alpha:
        verdict = "first" if only_first > only_second else "second"
    discordant = (only_first + only_second) / problems
    return PairedComparison(
        problems,
        only_first,
        only_second,
        p_value,
        (only_second - only_first) / problems,
        minimum_detectable_effect(problems, discordant, alpha=alpha, power=power),
        verdict,
    )
