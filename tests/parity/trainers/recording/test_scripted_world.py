"""The scripted world: batches, the sampler's answers, and what it refuses."""

from dataclasses import replace

import pytest
import torch

from sdpo.parity.cases.checked_call import CandidateError
from sdpo.parity.trainers.recording.scripted_world import (
    Script,
    ScriptedReward,
    feedback_varies,
    scripted_batch,
)
from sdpo.parity.trainers.scenarios.catalogue import BY_ID, PLAIN
from sdpo.parity.trainers.scenarios.scenario import EXTRA_PADDING
from sdpo.parity.trainers.scenarios.tiny_model import completion_ids, prompt_ids, tiny_tokenizer

PAD = 421


def prompts_of(rows):
    """Left-padded prompts and their mask, as a trainer hands them to the sampler."""
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
    return ids, (torch.arange(width) >= torch.tensor([[width - len(row)] for row in rows])).long()


def test_a_batch_has_prompts_at_the_left_and_completions_at_the_right():
    (generation,) = BY_ID["T03"].generations
    batch = scripted_batch(BY_ID["T03"], generation, tiny_tokenizer())
    prompts, completions = prompt_ids(generation), completion_ids(generation)
    width, length = max(map(len, prompts)), max(map(len, completions))
    assert batch["input_ids"].shape == (8, width + length)
    assert batch["response_mask"].sum(1).tolist() == [len(row) for row in completions]
    for row in range(8):
        attended = batch["attention_mask"][row].bool()
        tokens = batch["input_ids"][row][attended].tolist()
        assert tokens == [*prompts[row], *completions[row]]
        assert batch["position_ids"][row][attended].tolist() == list(range(len(tokens)))
    assert torch.equal(batch["responses"], batch["input_ids"][:, width:])


def test_the_disguise_of_extra_padding_makes_responses_wider():
    disguised = replace(PLAIN, disguise="extra padding")
    usual, wide = (
        scripted_batch(scenario, PLAIN.generations[0], tiny_tokenizer())["responses"]
        for scenario in (PLAIN, disguised)
    )
    assert wide.shape[1] == usual.shape[1] + EXTRA_PADDING
    assert set(wide[:, usual.shape[1] :].flatten().tolist()) == {PAD}


def test_the_sampler_answers_with_the_completions_of_the_rows_in_order():
    script = Script(PLAIN, PAD)
    prompts = prompt_ids(PLAIN.generations[0])
    first, second = (script.generate(*prompts_of(prompts[i : i + 2])) for i in (0, 2))
    completions = completion_ids(PLAIN.generations[0])
    for row, ids in enumerate([*first, *second]):
        answer = ids[len(prompts[0]) :].tolist()
        assert answer[: len(completions[row])] == list(completions[row])
        assert script.row_of(answer) == row
    assert script.generation == 0


def test_other_prompts_than_the_scripted_ones_are_refused():
    script, prompts = Script(PLAIN, PAD), prompt_ids(PLAIN.generations[0])
    with pytest.raises(CandidateError, match="prompts that are not rows 0-1 of generation 0"):
        script.generate(*prompts_of([prompts[0][1:], prompts[1]]))


def test_more_generations_than_scripted_are_refused():
    script, prompts = Script(PLAIN, PAD), prompt_ids(PLAIN.generations[0])
    script.generate(*prompts_of(prompts))
    with pytest.raises(CandidateError, match="generated more than the 1 scripted times"):
        script.generate(*prompts_of(prompts))


def test_a_row_that_nobody_wrote_is_refused():
    script = Script(PLAIN, PAD)
    script.generation = 0
    with pytest.raises(CandidateError, match="is no scripted row"):
        script.row_of([1, 2, 3])


def test_a_reward_function_gives_the_scripted_rewards_and_leaves_the_feedback():
    script = Script(BY_ID["T08"], PAD)
    script.generation, reward = 0, ScriptedReward(script)
    completions = completion_ids(BY_ID["T08"].generations[0])
    assert reward([list(completions[1]), list(completions[2])]) == [0.4, 0.5]
    assert reward.last_feedback == ["expected 5, got 4", None]


def test_which_scenarios_have_feedback_of_each_rollout():
    assert feedback_varies(BY_ID["T08"])
    assert not feedback_varies(BY_ID["T21"])
