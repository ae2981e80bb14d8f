"""TRL's rollouts under the names of an update, by hand."""

import torch

from sdpo.update.rollouts import as_messages, response_mask_of, update_batch

ROLLOUTS = {
    "prompt_ids": torch.tensor([[0, 7, 8]]),
    "prompt_mask": torch.tensor([[0, 1, 1]]),
    "completion_ids": torch.tensor([[9, 10, 0]]),
    "completion_mask": torch.tensor([[1, 1, 0]]),
    "self_distillation_mask": torch.tensor([1.0]),
    "old_log_probs": None,
}


def test_prompt_and_response_are_joined_and_positions_count_what_is_attended():
    batch = update_batch(ROLLOUTS)
    assert batch["input_ids"].tolist() == [[0, 7, 8, 9, 10, 0]]
    assert batch["attention_mask"].tolist() == [[0, 1, 1, 1, 1, 0]]
    assert batch["position_ids"].tolist() == [[0, 0, 1, 2, 3, 3]]
    assert batch["responses"].tolist() == [[9, 10, 0]]


def test_what_is_not_known_is_left_out():
    batch = update_batch(ROLLOUTS)
    assert "self_distillation_mask" in batch
    assert "old_log_probs" not in batch
    assert "rollout_is_weights" not in batch


def test_what_a_tool_wrote_does_not_count():
    tool = ROLLOUTS | {"tool_mask": torch.tensor([[1, 0, 1]])}
    assert response_mask_of(ROLLOUTS).tolist() == [[1, 1, 0]]
    assert response_mask_of(tool).tolist() == [[1, 0, 0]]


def test_a_text_becomes_one_message_and_parts_of_text_become_text():
    assert as_messages("?") == [{"role": "user", "content": "?"}]
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert as_messages([{"role": "user", "content": parts}])[0]["content"] == "ab"
    pictured = [{"type": "image"}, *parts]
    assert as_messages([{"role": "user", "content": pictured}])[0]["content"] == pictured
