"""One table of names: the project's and verl's."""

from sdpo.parity.cases.stage_trace import stage_of
from sdpo.parity.cases.value_names import VALUE_NAMES, by_our_names, by_verl_names, verl_name


def test_values_are_taken_from_below_a_prefix():
    recorded = {"out.loss": 1, "out.student_log_probs": 2, "in.responses": 3, "loss": 4}
    assert by_our_names(recorded, "out.") == {"log_probs.student": 2, "aggregate": 1}
    assert by_our_names(recorded) == {"aggregate": 4}


def test_what_verl_does_not_have_is_left_out():
    assert by_verl_names({"importance": 1, "scaled_loss": 2}) == {"per_token_loss": 1}


def test_with_indices_a_support_is_the_top_k_and_without_them_everything():
    assert by_verl_names({"support.student": 1}) == {"student_all_log_probs": 1}
    topk = {"support.student": 1, "support.indices": 2}
    assert by_verl_names(topk) == {"student_topk_log_probs": 1, "student_topk_indices": 2}


def test_names_go_to_verl_and_back():
    for name in VALUE_NAMES:
        topk = "_all_" not in name.verl
        assert verl_name(name.ours, topk=topk) == name.verl
        assert by_our_names({name.verl: 1}) == {name.ours: 1}


def test_no_name_of_verl_stands_for_two_values():
    assert len({name.verl for name in VALUE_NAMES}) == len(VALUE_NAMES)


def test_masks_and_ratios_belong_to_no_stage():
    without = {name.ours for name in VALUE_NAMES if not stage_of(name.ours)}
    assert without == {"loss_mask", "old_log_probs", "entropy"}
