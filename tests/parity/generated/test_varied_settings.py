"""What some cases show together, counted by hand."""

from sdpo.parity.generated.covering_array import covering_rows
from sdpo.parity.generated.factors import possible_pairs, table
from sdpo.parity.generated.varied_settings import varied_settings

PLAIN = {factor: values[0] for factor, values in table().factors.items()}


def test_one_case_shows_each_pair_of_factors_once():
    varied = varied_settings([PLAIN], {})
    count = len(PLAIN)
    assert varied.pairs_shown == count * (count - 1) // 2
    assert "clip 0.5" in varied.not_varied
    assert "clip none" not in varied.not_varied


def test_all_cases_show_all_pairs_and_leave_nothing_out():
    varied = varied_settings(covering_rows(), {})
    assert varied.pairs_shown == varied.pairs == len(possible_pairs())
    assert str(varied).endswith(f"pairs of values of {len(PLAIN)} factors")


def test_what_a_candidate_does_not_take_is_not_varied():
    varied = varied_settings(covering_rows(), {"arguments": "by name"})
    assert varied.not_varied == ["arguments by position"]
    assert str(varied).endswith("; not varied: arguments by position")
