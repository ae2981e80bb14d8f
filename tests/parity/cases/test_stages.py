"""The stages: order, kinds, and where the reference computes them."""

from sdpo.parity.cases.stages import NAMES, PROMPT_STAGES, STAGES, first_in_order


def test_there_are_sixteen_stages_numbered_in_their_order():
    assert [stage.number for stage in STAGES.values()] == list(range(1, 17))
    assert (NAMES[0], NAMES[7], NAMES[-1]) == ("config", "support", "teacher_update")


def test_settings_and_prompts_are_exact_and_the_others_numbers():
    exact = [name for name, stage in STAGES.items() if stage.kind == "exact"]
    assert exact == ["config", *PROMPT_STAGES]
    assert len(PROMPT_STAGES) == 5


def test_a_row_of_the_table_is_a_stage():
    tail = STAGES["tail"]
    assert tail.source == "verl/trainer/ppo/core_algos.py:1112-1131"
    assert tail.compares == "after tail bucket or renormalisation"


def test_the_first_of_some_is_the_first_in_time():
    assert first_in_order({"gradient", "tail", "importance"}) == "tail"
    assert first_in_order(set()) is None
