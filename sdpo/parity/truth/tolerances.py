"""Every number that decides a verdict, withdraws one or attributes a cause, each with its test.

All of them are in each report (`environment.tolerances`), and `sdpo trend` alarms when one grows.
What follows from a formula needs no number here: the factors in `error_bounds.py` count roundings
(docs/error_bounds.md), and two evaluations may differ by two budgets. Limits of effort, such as how
many pairs of faults are tried, stand where they are used: they may leave a cause unnamed, and
decide no verdict.
"""

from dataclasses import asdict, dataclass, field, fields
from typing import TypeVar

_Value = TypeVar("_Value", int, float)


def _number(value: _Value, meaning: str, test: str) -> _Value:
    """Make a field that says what it allows and which test below `tests/parity` fixed it."""
    return field(default=value, metadata={"meaning": meaning, "test": f"tests/parity/{test}"})


@dataclass(frozen=True)
class Tolerances:
    """The tolerances in the order of the rooms that use them; a larger one accuses less."""

    # the loss against the oracle: `truth`
    loss_roundings: float = _number(
        2.5,
        "unit roundoffs that each operation of the loss may be off by",
        "truth/test_budget.py::test_a_correct_evaluation_stays_inside",
    )
    loss_error_deviations: float = _number(
        3.0,
        "standard deviations that independent errors may add up to",
        "truth/test_error_bounds.py::test_independent_errors_add_up_in_quadrature",
    )
    exp_roundings: float = _number(
        4.0,
        "roundings of a vectorised exponential: two units in the last place",
        "truth/test_topk_ties.py::test_the_intervals_of_the_keys_are_no_wider_than_keys_need",
    )
    norm_slack: float = _number(
        6.0,
        "times the reference's distance from the oracle, in the norm, in half precision",
        "truth/test_norm_limit.py::test_a_correct_evaluation_uses_half_at_most",
    )
    norm_roundings_of_value: float = _number(
        4.0,
        "roundings of the value that the reference's distance counts as at least",
        "truth/test_norm_limit.py::test_a_lucky_reference_leaves_room_for_a_few_roundings",
    )
    norm_roundings_of_divergence: float = _number(
        1.0,
        "the same, of the natural scale of divergence and loss",
        "truth/test_norm_limit.py::test_a_lucky_reference_leaves_room_for_a_few_roundings",
    )
    norm_roundings_of_gradient: float = _number(
        0.5,
        "the same, of the natural scale of the gradient",
        "truth/test_norm_limit.py::test_a_lucky_reference_leaves_room_for_a_few_roundings",
    )
    norm_least_size: float = _number(
        8.0,
        "roundings of its natural scale up to which a value has no limit in the norm",
        "truth/test_norm_limit.py::test_a_value_of_a_few_roundings_has_no_limit_in_the_norm",
    )
    norm_fewest_tokens: float = _number(
        4.0,
        "tokens below which only the gradient has a limit in the norm",
        "truth/test_norm_limit.py::test_the_loss_of_a_few_tokens_has_no_limit_in_the_norm",
    )
    usable_budget_share: float = _number(
        0.25,
        "share of a value from which its measured budget shows no factor of two",
        "truth/test_usable_budget.py::test_a_value_of_half_the_size_is_over_every_budget_that_is_one",
    )

    # a candidate beside itself and beside another precision: `compare`
    self_difference_slack: float = _number(
        10.0,
        "times what two runs of a candidate differ by that a divergence must exceed",
        "truth/test_tolerances.py::test_a_divergence_within_ten_run_to_run_differences_is_withdrawn",
    )
    precision_line_fineness: float = _number(
        16.0,
        "places of a line inside one rounding step of a lower precision",
        "compare/test_own_precision.py::test_steps_of_a_curve_of_a_staircase_and_of_nothing",
    )
    precision_control_step: float = _number(
        2.0**-4,
        "steps of the reference ÷ its way on such a line above which a case tells nothing",
        "truth/test_tolerances.py::test_a_coarse_reference_tells_no_precision",
    )

    # whole updates against a recording: `recorded`
    update_slack: float = _number(
        4.0,
        "times the recording's distance from float64 that a value may be off",
        "truth/test_tolerances.py::test_the_budget_of_an_update_is_its_spread_and_roundings",
    )
    update_roundings: float = _number(
        8.0,
        "roundings of a value's scale that it may be off beside that",
        "truth/test_tolerances.py::test_the_budget_of_an_update_is_its_spread_and_roundings",
    )
    update_rerun_reach: float = _number(
        10.0,
        "budgets up to which a value is judged again by further float32 runs",
        "recorded/test_recording_spread.py::test_only_what_is_a_little_over_is_measured_again",
    )
    update_reruns: int = _number(
        8,
        "further float32 runs of the reference, with weights rounded anew",
        "recorded/test_recording_spread.py::test_luck_of_the_recording_is_no_verdict",
    )

    # a running training: `lockstep`
    live_slack: float = _number(
        16.0,
        "times the reference's distance from float64 that a training may be off",
        "truth/test_tolerances.py::test_the_budget_of_a_live_audit_is_its_noise_and_a_floor",
    )
    live_roundings: float = _number(
        4.0,
        "units in the last place of float32 added to that distance",
        "truth/test_tolerances.py::test_the_budget_of_a_live_audit_is_its_noise_and_a_floor",
    )

    # which fault, which stage: `compare`, `explain`, `relations`
    agreement_roundings: float = _number(
        4.0,
        "units in the last place of a token's largest gradient within which two gradients agree",
        "truth/test_tolerances.py::test_two_gradients_agree_within_a_few_units_of_the_largest_entry",
    )
    agreement_largest_digits: float = _number(
        0.5,
        "power of the epsilon that limits the share of the largest value two results may differ by",
        "truth/test_tolerances.py::test_results_agree_in_half_of_the_digits_at_least",
    )
    fault_agreement_slack: float = _number(
        4.0,
        "times two budgets within which candidate and fault agree",
        "truth/test_tolerances.py::test_a_fault_agrees_within_four_allowances",
    )
    fault_hidden_share: float = _number(
        0.5,
        "share of the divergent cases on which a fault that explains them may not show",
        "truth/test_tolerances.py::test_a_fault_shows_in_half_of_the_divergent_cases_at_least",
    )
    explanation_beside_share: float = _number(
        0.25,
        "share of the best explanation's cases below which another is told apart, as 'also'",
        "truth/test_tolerances.py::test_an_explanation_of_a_quarter_of_the_cases_stands_beside_the_best",
    )
    ladder_factor_spread: float = _number(
        0.05,
        "spread of one factor over the rungs of the ladder, as a share of its distance from 1",
        "truth/test_tolerances.py::test_one_factor_on_all_rungs_varies_by_a_twentieth_at_most",
    )
    dtype_unmatched_share: float = _number(
        0.5,
        "share of the divergent cases that need no counterpart in another dtype to blame theirs",
        "compare/test_own_precision.py::test_what_has_no_counterpart_in_another_dtype_is_not_blamed_on_its_own",
    )
    relation_input_roundings: float = _number(
        64.0,
        "units in the last place within which two inputs of a relation are the same",
        "truth/test_tolerances.py::test_inputs_within_64_units_are_the_same",
    )

    # a recorded training of a trainer: `trainers`
    micro_batch_scale_roundings: float = _number(
        64.0,
        "units in the last place within which a micro-batch's scale is the right one",
        "truth/test_tolerances.py::test_a_scale_within_64_units_is_the_right_one",
    )
    tail_probability_roundings: float = _number(
        16.0,
        "units in the last place of one within which two tails agree",
        "truth/test_tolerances.py::test_tails_within_16_units_of_probability_agree",
    )
    loss_ratio_spread: float = _number(
        0.2,
        "share by which the ratio of two losses and that of their gradients may differ",
        "truth/test_tolerances.py::test_a_wrong_scale_is_told_from_another_loss_within_a_fifth",
    )
    accumulation_factor_spread: float = _number(
        0.001,
        "share by which a scale may differ from a wrong division by the accumulation steps",
        "truth/test_tolerances.py::test_a_wrong_division_is_named_within_a_thousandth",
    )
    known_weights_roundings: float = _number(
        16.0,
        "units in the last place of the largest weight within which a fault gives a tensor",
        "truth/test_tolerances.py::test_weights_within_16_units_of_the_largest_are_those_of_a_fault",
    )
    logged_absolute: float = _number(
        5.1e-05,
        "how far a logged number may be off: transformers may round to four decimals",
        "truth/test_tolerances.py::test_a_logged_number_may_be_rounded_to_four_decimals",
    )
    logged_relative: float = _number(
        0.0001,
        "share of itself by which a logged number may be off beside that",
        "truth/test_tolerances.py::test_a_logged_number_may_be_rounded_to_four_decimals",
    )
    probe_loss_factor: float = _number(
        5.0,
        "times the reference's change of the loss that a trainer's may be, up or down",
        "truth/test_tolerances.py::test_a_probe_moves_the_loss_within_a_factor_of_five",
    )

    # what failing cases have in common: `explain`
    pair_of_conditions_gain: float = _number(
        0.05,
        "share of the cases by which two conditions must tell failing ones better than one does",
        "explain/test_conditions.py::test_two_conditions_must_tell_clearly_better_than_one",
    )

    # settings that a loss has no argument for: `capabilities`
    assumed_setting_distance: float = _number(
        0.001,
        "1 - cosine of two gradients that are called one direction, and log ratio of one size",
        "capabilities/test_absent_settings.py::test_a_rounded_loss_is_as_close_as_an_exact_one",
    )

    # declared deviations and the history: `report`
    harmless_share: float = _number(
        2**-23,
        "share of loss and gradient below which a difference is called harmless: float32's epsilon",
        "report/test_judgement.py::test_what_float32_cannot_hold_is_called_harmless",
    )
    drafted_range_share: float = _number(
        0.1,
        "share of a measured size by which a drafted entry lets it move",
        "report/test_draft_ledger.py::test_a_draft_is_refused_until_it_has_reasons_and_then_declares",
    )
    detectable_growth: float = _number(
        1.01,
        "times by which the smallest detectable change may grow without an alarm",
        "report/test_trend.py::test_what_is_tighter_or_no_tolerance_does_not_alarm",
    )

    # releases beside each other: `watch`
    release_drift_share: float = _number(
        0.01,
        "share of the size of a case by which two releases may differ and count as alike",
        "watch/test_changes.py::test_a_size_that_moves_by_more_than_rounding_is_a_change",
    )


TOLERANCES = Tolerances()
MEANINGS = {one.name: one.metadata["meaning"] for one in fields(Tolerances)}


def recorded() -> dict[str, float]:
    """All tolerances by name, as a report holds them."""
    return asdict(TOLERANCES)
