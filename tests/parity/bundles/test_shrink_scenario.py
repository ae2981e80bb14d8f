"""Scenarios shrunk by updates, groups, rows and settings."""

from sdpo.parity.bundles.shrink_scenario import MOST_TRIES, shrink_scenario
from sdpo.parity.trainers.scenarios.catalogue import BY_ID, PLAIN
from sdpo.parity.trainers.scenarios.scenario import Scenario


def has_failures_and_successes(scenario: Scenario) -> bool:
    rewards = {rollout.reward for rollout in scenario.generations[0].rollouts}
    return rewards == {0.0, 1.0}


def test_a_few_tries_leave_one_update_of_one_process():
    smallest, tries = shrink_scenario(BY_ID["T32"], has_failures_and_successes)
    assert tries == MOST_TRIES
    assert (len(smallest.generations), smallest.processes) == (1, 1)


def test_many_tries_leave_two_rows_and_the_plain_settings():
    smallest, _ = shrink_scenario(BY_ID["T32"], has_failures_and_successes, 100)
    assert len(smallest.generations[0].rollouts) == 2
    assert smallest.optimizer == PLAIN.optimizer
    assert smallest.self_distillation == PLAIN.self_distillation


def test_a_setting_stays_without_which_the_scenario_does_not_fail():
    smallest, _ = shrink_scenario(BY_ID["T02"], lambda s: s.temperature == 0.7, 100)
    assert smallest.temperature == 0.7
    assert len(smallest.generations[0].rollouts) == 2


def test_a_scenario_of_which_no_smaller_one_fails_stays():
    smallest, tries = shrink_scenario(BY_ID["T32"], lambda _: False)
    assert smallest == BY_ID["T32"]
    assert tries == MOST_TRIES
