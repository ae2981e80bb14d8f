"""The reference's inputs of every scenario, against its own encoding of the prompts."""

import pytest
import torch

from sdpo.parity.trainers.judge.reference_run import reference_batch
from sdpo.parity.trainers.scenarios.catalogue import BY_ID, SCENARIOS
from sdpo.parity.trainers.scenarios.tiny_model import tiny_tokenizer
from sdpo.reference import teacher_prompt as reference


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.id)
def test_prompts_are_those_that_the_reference_encodes(scenario):
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"
    for generation in scenario.generations:
        batch, _ = reference_batch(scenario, generation, tiny_tokenizer())
        conversations = map(generation.conversation_of, range(len(generation.rollouts)))
        longest = {"max_reprompt_len": tokenizer.model_max_length}
        ids, mask = reference.encode_prompts(
            [list(messages) for messages in conversations], tokenizer, longest, None
        )
        width = ids.shape[1]
        assert torch.equal(batch["input_ids"][:, :width], ids)
        assert torch.equal(batch["attention_mask"][:, :width], mask)
        assert torch.equal(batch["input_ids"][:, width:], batch["responses"])
        assert torch.equal(batch["attention_mask"][:, width:], batch["response_mask"])


def test_the_trace_has_one_value_per_row():
    scenario = BY_ID["T08"]
    batch, trace = reference_batch(scenario, scenario.generations[0], tiny_tokenizer())
    rows = len(scenario.generations[0].rollouts)
    assert batch["teacher_input_ids"].shape[0] == rows
    assert [len(trace[name]) for name in ("feedback", "demonstration", "teacher_prompt")] == [
        rows
    ] * 3
    assert trace["distillation_mask"].shape == (rows,)
