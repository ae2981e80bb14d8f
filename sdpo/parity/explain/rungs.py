"""The rungs of the ladder by the feature that each adds, and what a rung may show."""

from enum import StrEnum
from typing import TypedDict


class Feature(StrEnum):
    """What a rung adds to those below it; reports print the names."""

    ALPHA_0 = "alpha 0"
    ALPHA_1 = "alpha 1"
    ALPHA_HALF = "alpha 0.5"
    ALPHA_QUARTER = "alpha 0.25"
    SAMPLED = "sampled token"
    TEMPERATURE = "temperature"
    TEMPERATURE_SAMPLED = "temperature, sampled"
    EQUAL_TOKENS = "equal tokens"
    DISTINCT_TOKENS = "distinct tokens"
    DISTINCT_SAMPLED = "distinct tokens, sampled"
    TWO_ROWS = "two rows"
    RENORMALISED_SAME_RANKING = "top-k renormalised, same ranking"
    TAIL_SAME_RANKING = "top-k tail, same ranking"
    RENORMALISED = "top-k renormalised"
    TAIL = "top-k tail"
    SMALL_TAIL = "small tail"
    RENORMALISED_ONE = "renormalised, one entry"
    RENORMALISED_WHOLE = "renormalised, whole vocabulary"
    TAIL_OF_ONE = "tail of one token"
    EMPTY_TAIL = "empty tail"
    K_ABOVE_VOCABULARY = "K above the vocabulary"
    TEACHER_AT_LIMIT = "teacher's tail at its limit"
    RATIO_BELOW_CAP = "ratio below cap"
    RATIO_BELOW_CAP_ABOVE_ONE = "ratio between one and cap"
    RATIO_ABOVE_CAP = "ratio above cap"
    LOG_RATIO_BEYOND_LIMIT = "log ratio beyond 20"
    ROLLOUT_WEIGHTS = "rollout weights"
    RATIO_AT_TEMPERATURE = "ratio at a temperature"
    RATIOS = "ratios of several tokens"
    RATIO_AND_WEIGHTS = "ratio and weights"
    PADDING_TOKEN_MEAN = "padding, token-mean"
    EMPTY_COLUMN_TOKEN_MEAN = "empty column, token-mean"
    NO_SIGNAL_TOKEN_MEAN = "row without signal, token-mean"
    PADDING_ROW_MEAN = "padding, seq-mean-token-mean"
    EMPTY_COLUMN_ROW_MEAN = "empty column, seq-mean-token-mean"
    NO_SIGNAL_ROW_MEAN = "row without signal, seq-mean-token-mean"
    PADDING_ROW_SUM = "padding, seq-mean-token-sum"
    EMPTY_COLUMN_ROW_SUM = "empty column, seq-mean-token-sum"
    NO_SIGNAL_ROW_SUM = "row without signal, seq-mean-token-sum"
    PADDING_ROW_SUM_NORM = "padding, seq-mean-token-sum-norm"
    EMPTY_COLUMN_ROW_SUM_NORM = "empty column, seq-mean-token-sum-norm"
    NO_SIGNAL_ROW_SUM_NORM = "row without signal, seq-mean-token-sum-norm"
    NOTHING_COUNTS = "nothing counts"
    SAMPLED_WITH_RATIO = "sampled token with ratio"
    FAR_OFF_ALPHA_0 = "token far off, alpha 0"
    FAR_OFF_ALPHA_1 = "token far off, alpha 1"
    FAR_LOGITS_ALPHA_1 = "far logits, alpha 1"
    FAR_LOGITS_ALPHA_HALF = "far logits, alpha 0.5"
    FAR_LOGITS_RENORMALISED = "far logits, renormalised"
    RENORMALISED_AT_TEMPERATURE = "top-k renormalised at a temperature"
    TAIL_AT_TEMPERATURE = "top-k tail at a temperature"
    NEAR_TIES = "top-k among near ties"
    RENORMALISED_ALPHA_1 = "top-k renormalised, alpha 1"
    NO_SIGNAL_WITH_RATIO = "row without signal, with ratios"
    LOW_TEACHER = "teacher in bfloat16"
    LOW_STUDENT = "student in bfloat16"
    MANY_TOKENS = "40 tokens"


class RungResult(StrEnum):
    """What a rung showed."""

    HOLDS = "holds"
    DEPARTS = "departs"
    ONLY_LOSS_DEPARTS = "loss departs"
    ONLY_GRADIENT_DEPARTS = "gradient departs"
    UNUSABLE = "not covered"


class RungRow(TypedDict):
    """A rung in the report; `factor` is the loss divided by the reference's."""

    stage: str
    feature: str
    result: str
    factor: float | None
