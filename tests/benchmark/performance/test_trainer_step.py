"""The scripted rollouts of the trainers' benchmark, and ratios to the best peer."""

from argparse import Namespace

import pandas as pd

from sdpo.benchmark.performance.trainer_step import TRAINERS, scenario, summary


def test_half_of_the_groups_succeed_and_questions_are_longer():
    chosen = Namespace(prompt=[8], length=4, signal=[0.5], steps=3)
    script = scenario(chosen, {"alpha": 0.25})
    assert len(script.generations) == 3
    rollouts = script.generations[0].rollouts
    assert [rollout.reward for rollout in rollouts] == [1.0] * 4 + [0.0] * 4
    assert rollouts[2].completion == "2 1 1"
    assert script.generations[0].conversations[1][0]["content"] == "Count from 1. 1 1 1 1"
    assert script.self_distillation["alpha"] == 0.25


def test_the_best_peer_is_the_fastest_in_each_round():
    seconds = dict(zip(TRAINERS, (2.0, 1.0, 1.0, 4.0, 8.0), strict=True))
    shape = {"size": "tiny", "parameters": 7, "prompt": 0, "signal": 1.0, "round": 0}
    rows = [
        {**shape, "trainer": name, "step_s": value, "step_cpu_s": value, "memory_gib": value}
        for name, value in seconds.items()
    ]
    table = summary(pd.DataFrame(rows)).set_index("trainer")
    assert table.loc["ours, logits", "time/best peer"] == "0.50 (0.50 to 0.50)"
    assert table.loc["sdpo-rl", "memory/best peer"] == "2.00 (2.00 to 2.00)"
