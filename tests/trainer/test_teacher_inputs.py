"""From rollouts to teacher inputs: several rewards, feedback, prompts of all kinds, bad input."""

import re
import warnings
from typing import Any

import pytest
import torch
from datasets import Dataset

from sdpo.fixtures import packaged_family
from sdpo.parity.candidates.implementations import Own
from sdpo.parity.cases.stages import PROMPT_STAGES
from sdpo.prompt import teacher_batch
from sdpo.prompt.demonstrations import RepromptWarning
from sdpo.settings.config import ConfigError, SDPOConfig
from sdpo.trainer.checks import SDPOWarning
from sdpo.trainer.teacher_inputs import (
    collect_feedback,
    in_order,
    teacher_inputs,
    weighted_rewards,
)
from sdpo.update.observer import UpdateObserver
from sdpo.update.rollouts import Rollouts
from tests.helpers.trainers import tiny_trainer

pytestmark = pytest.mark.usefixtures("packages_are_looked_up_once")

SMALL: dict[str, Any] = {"distillation_topk": 20}


class Recorder(UpdateObserver):
    """Keeps what the trainer built from its rollouts."""

    def __init__(self):
        self.seen = []

    def on_rollouts(self, rollouts, trace, batch):
        self.seen.append((rollouts, trace, batch))


def first_rollouts(folder, config, **changes):
    args = {"max_steps": 1, **changes.pop("args", {})}
    trainer = tiny_trainer.trainer(folder, config, args=args, **changes)
    recorder = Recorder()
    trainer.observers.append(recorder)
    trainer.train()
    return (*recorder.seen[0], trainer)


def texts(batch) -> list[str]:
    ids, mask = batch["teacher_input_ids"], batch["teacher_attention_mask"]
    width = ids.shape[1] - batch["completion_ids"].shape[1]
    rows = zip(ids[:, :width].tolist(), mask[:, :width].tolist(), strict=True)
    decode = tiny_trainer.recorded_tokenizer().decode
    return [str(decode([i for i, m in zip(*row, strict=True) if m])) for row in rows]


def test_the_system_message_stays_and_the_demonstration_is_a_peers(tmp_path):
    rollouts, trace, batch, _ = first_rollouts(tmp_path, SDPOConfig(**SMALL))
    for row, text in enumerate(texts(batch)):
        assert text.startswith("<|im_start|>system\nAnswer with one number.<|im_end|>")
        shown = trace["demonstration"][row]
        assert shown.row // 4 == row // 4
        assert shown.row != row
        assert rollouts.rewards[shown.row] == 1
        assert "Correct solution:" in text
        assert shown.text in text
    assert batch["self_distillation_mask"].tolist() == [1] * 4


def test_turns_before_the_last_one_stay(tmp_path):
    talk = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi there"},
        {"role": "user", "content": "What is 2 + 2?"},
    ]
    _, _, batch, _ = first_rollouts(
        tmp_path, SDPOConfig(**SMALL), train_dataset=Dataset.from_dict({"prompt": [talk] * 4})
    )
    for text in texts(batch):
        assert "<|im_start|>assistant\nHi there<|im_end|>" in text
        assert text.count("<|im_start|>user") == 2


def test_plain_text_prompts_stay_plain(tmp_path):
    prompts = Dataset.from_dict({"prompt": [f"Q: {row} + {row} = ?" for row in range(4)]})
    _, _, batch, _ = first_rollouts(tmp_path, SDPOConfig(**SMALL), train_dataset=prompts)
    assert all(re.match(r"Q: \d \+ \d = \?\nCorrect solution:", text) for text in texts(batch))


def test_template_arguments_of_the_students_prompts_reach_the_teacher(tmp_path):
    _, _, thinking, _ = first_rollouts(tmp_path, SDPOConfig(**SMALL))
    closed = "<think>\n\n</think>\n\n"
    assert not any(text.endswith(closed) for text in texts(thinking))
    args = {"chat_template_kwargs": {"enable_thinking": False}}
    _, _, batch, _ = first_rollouts(tmp_path, SDPOConfig(**SMALL), args=args)
    assert all(text.endswith(closed) for text in texts(batch))
    own = SDPOConfig(apply_chat_template_kwargs={"enable_thinking": False}, **SMALL)
    _, _, batch, _ = first_rollouts(tmp_path, own)
    assert all(text.endswith(closed) for text in texts(batch))


def test_several_reward_functions_are_weighed_and_their_feedback_joined(tmp_path):
    class Style:
        __name__ = "style"

        def __call__(self, completions, **_):
            self.last_feedback = ["be brief"] * len(completions)
            return [1.0] * len(completions)

    def ignored(completions, **_):
        return [None] * len(completions)

    config = SDPOConfig(
        success_reward_threshold=1.2, environment_feedback_only_without_solution=False, **SMALL
    )
    rewards = [tiny_trainer.Alternating(feedback=True), Style(), ignored]
    rollouts, trace, batch, _ = first_rollouts(
        tmp_path, config, reward_funcs=rewards, args={"reward_weights": [1.0, 0.25, 5.0]}
    )
    assert rollouts.rewards.tolist() == [1.25, 0.25, 1.25, 0.25]
    assert trace["feedback"] == [
        "be brief",
        "wrong: row 1\n\nbe brief",
        "be brief",
        "wrong: row 3\n\nbe brief",
    ]
    assert all("be brief" in text for text in texts(batch))


def test_feedback_may_be_a_logged_column_or_a_column_of_the_rollouts(tmp_path):
    def logs(completions, log_extra, **_):
        log_extra("feedback", [f"logged {row}" for row in range(len(completions))])
        return [0.0] * len(completions)

    _, trace, _, trainer = first_rollouts(tmp_path, SDPOConfig(**SMALL), reward_funcs=[logs])
    assert trace["feedback"] == [f"logged {row}" for row in range(4)]
    assert list(trainer._logs["extra"]["feedback"]) == trace["feedback"]

    def zero(completions, **_):
        return [0.0] * len(completions)

    data = tiny_trainer.dataset(hint=["try again"] * 4)
    config = SDPOConfig(feedback_column="hint", **SMALL)
    _, trace, batch, _ = first_rollouts(tmp_path, config, reward_funcs=[zero], train_dataset=data)
    assert trace["feedback"] == ["try again"] * 4
    assert batch["self_distillation_mask"].tolist() == [1] * 4


@pytest.mark.parametrize(
    ("feedback", "error", "message"),
    [
        (["only one"], ValueError, r"'alternating' has 1 entries for 4 completions"),
        ("one text", TypeError, "is str, not a list"),
        ([1, 2, 3, 4], TypeError, "entry 0, is int"),
    ],
)
def test_feedback_of_the_wrong_length_or_type_is_refused(feedback, error, message, tmp_path):
    class Wrong(tiny_trainer.Alternating):
        def __call__(self, completions, **_):
            self.last_feedback = feedback
            return [0.0] * len(completions)

    with pytest.raises(error, match=message):
        first_rollouts(tmp_path, SDPOConfig(**SMALL), reward_funcs=[Wrong()])


def test_empty_feedback_counts_as_none():
    assert collect_feedback({"a": ["", None], "b": [" ", "x"]}, 2) == [None, "x"]
    assert collect_feedback({"a": [], "b": None}, 2) == [None, None]


def test_without_any_signal_there_is_one_warning_and_the_loss_is_zero(tmp_path):
    def zero(completions, **_):
        return [0.0] * len(completions)

    trainer = tiny_trainer.trainer(
        tmp_path, SDPOConfig(**SMALL), reward_funcs=[zero], args={"max_steps": 3}
    )
    with pytest.warns(
        SDPOWarning, match="0 of 4 rows have a teacher signal at step 0: the loss is 0"
    ):
        trainer.train()
    assert [row["loss"] for row in trainer.state.log_history if "loss" in row] == [0, 0, 0]
    trainer = tiny_trainer.trainer(
        tmp_path, SDPOConfig(**SMALL), reward_funcs=[zero], args={"max_steps": 3}
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SDPOWarning)
        trainer.train()
    assert sum(issubclass(w.category, SDPOWarning) for w in caught) == 1


def test_a_threshold_in_reach_brings_the_signal_back(tmp_path):
    class Later(tiny_trainer.Alternating):
        calls = 0

        def __call__(self, completions, **_):
            self.calls += 1
            return [float(self.calls == 2)] * len(completions)

    trainer = tiny_trainer.trainer(
        tmp_path, SDPOConfig(**SMALL), reward_funcs=[Later()], args={"max_steps": 3}
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SDPOWarning)
        trainer.train()
    found = [str(w.message) for w in caught if issubclass(w.category, SDPOWarning)]
    assert [re.findall(r"at step (\d)", text) for text in found] == [["0"], ["2"]]


def test_a_prompt_that_is_too_long_is_cut_with_a_warning_or_refused(tmp_path):
    with pytest.warns(RepromptWarning, match="longer than max_reprompt_len=20"):
        _, _, batch, _ = first_rollouts(tmp_path, SDPOConfig(max_reprompt_length=20, **SMALL))
    assert batch["teacher_input_ids"].shape[1] == 20 + batch["completion_ids"].shape[1]
    refusing = SDPOConfig(max_reprompt_length=20, reprompt_truncation="error", **SMALL)
    with pytest.raises(ValueError, match="more than max_reprompt_len=20"):
        first_rollouts(tmp_path, refusing)


def test_a_group_of_one_is_refused_by_trl(tmp_path):
    with pytest.raises(ValueError, match="at least 2 generations per prompt"):
        tiny_trainer.arguments(tmp_path, num_generations=1)


def test_a_tokenizer_without_padding_token_warns_or_is_refused(tmp_path):
    tokenizer = tiny_trainer.tokenizer()
    tokenizer.pad_token = None
    with pytest.warns(SDPOWarning, match="no padding token"):
        tiny_trainer.trainer(tmp_path, SDPOConfig(), processing_class=tokenizer)
    assert tokenizer.pad_token == tokenizer.eos_token
    tokenizer.pad_token = tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="no padding token and no end token"):
        tiny_trainer.trainer(tmp_path, SDPOConfig(), processing_class=tokenizer)


def test_multimodal_prompts_are_refused():
    picture = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
    spoken = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    ids = torch.full((2, 3), 40)
    rewards = torch.tensor([1.0, 0.0])

    def build(prompt):
        rollouts = Rollouts([prompt] * 2, ids, torch.ones_like(ids), rewards, [None] * 2)
        return teacher_inputs(
            rollouts, tiny_trainer.recorded_tokenizer(), SDPOConfig(), group_size=2
        )

    assert build(spoken).trace["teacher_prompt"][0][-1]["content"] == "a"
    with pytest.raises(TypeError, match="multimodal"):
        build(picture)


@pytest.mark.parametrize("stage", PROMPT_STAGES)
def test_what_is_audited_is_what_trains(stage, monkeypatch):
    """A fault in any stage of `teacher_batch` breaks the audited prompt and the trainer's alike."""

    def fault(*_, **__):
        raise AssertionError(f"the {stage} with the fault")

    golden = next(iter(packaged_family("reprompt")))
    tokenizer = tiny_trainer.recorded_tokenizer()
    ids = torch.full((2, 3), 40)
    rollouts = Rollouts(["?"] * 2, ids, torch.ones_like(ids), torch.ones(2), [None] * 2)
    monkeypatch.setattr(teacher_batch, stage, fault)
    with pytest.raises(AssertionError, match=f"the {stage} with the fault"):
        Own().prompt_record(golden, golden.tensors(), tokenizer)
    with pytest.raises(AssertionError, match=f"the {stage} with the fault"):
        teacher_inputs(rollouts, tokenizer, SDPOConfig(), group_size=2)


def test_a_row_that_no_function_scored_has_no_reward():
    nan = float("nan")
    rewards = torch.tensor([[1.0, 2.0], [nan, 2.0], [nan, nan]])
    total = weighted_rewards(rewards, torch.tensor([1.0, 0.5]))
    assert total[:2].tolist() == [2.0, 1.0]
    assert total[2].isnan()


def test_shuffled_rows_come_back_in_order():
    parts = [
        {
            "sdpo_row": torch.tensor([2, 0]),
            "x": torch.tensor([[2], [0]]),
            "l": ["c", "a"],
            "n": None,
        },
        {
            "sdpo_row": torch.tensor([3, 1]),
            "x": torch.tensor([[3], [1]]),
            "l": ["d", "b"],
            "n": None,
        },
    ]
    ordered = in_order([part | {"total": torch.tensor(7)} for part in parts])
    assert [part["x"].flatten().tolist() for part in ordered] == [[0, 1], [2, 3]]
    assert [part["l"] for part in ordered] == [["a", "b"], ["c", "d"]]
    assert [part["total"].item() for part in ordered] == [7, 7]


def test_weights_for_rollouts_from_another_sampler(tmp_path, monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")

    def sampler(prompts, trainer):
        rows = len(prompts)
        return {
            "prompt_ids": [[10, 11]] * rows,
            "completion_ids": [[40, 41, 420]] * rows,
            "logprobs": [[-9.0, float("nan"), -1.0]] * rows,
        }

    _, _, batch, trainer = first_rollouts(
        tmp_path, SDPOConfig(rollout_is_threshold=1.5, **SMALL), rollout_func=sampler
    )
    old, weights = batch["old_log_probs"], batch["rollout_is_weights"]
    expected = (old - batch["sampling_per_token_logps"]).exp().clamp(max=1.5)
    assert weights[:, 1].tolist() == [1.0] * 4
    torch.testing.assert_close(weights[:, [0, 2]], expected[:, [0, 2]])
    assert (weights[:, 0] == 1.5).all()
    assert all("rollout_is_weights" in part for part in trainer._buffered_inputs)
