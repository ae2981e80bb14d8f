"""The audit's rows come from where they arise: a trainer that mixes them up is found by it.

Each fault here hands the audit what it hands itself, so that nothing of the trainer's tells.
"""

import asyncio
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import GRPOTrainer  # pyright: ignore[reportPrivateImportUsage]
from trl.trainer.utils import RepeatSampler

from sdpo.lockstep.parity_callback import ParityWarning
from sdpo.lockstep.rollout_source import SourceError, groups
from sdpo.settings.config import SDPOConfig
from sdpo.trainer.log_probs_before_update import LogProbsBeforeUpdate
from sdpo.trainer.sdpo_trainer import SDPOTrainer
from tests.helpers.trainers import tiny_trainer
from tests.helpers.trainers.tiny_variants import rows_of

pytestmark = pytest.mark.usefixtures("packages_are_looked_up_once")

END = 420


@pytest.fixture(autouse=True)
def silent(monkeypatch):
    """TRL calls a `rollout_func` experimental each time."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")


class Judge:
    """Success for a third of all completions, and feedback that tells each from the others."""

    __name__ = "judge"

    def __init__(self):
        self.last_feedback: list[str] = []

    def __call__(self, completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        self.last_feedback = [f"sum {sum(ids)}" for ids in completion_ids]
        return [float(sum(ids) % 3 == 0) for ids in completion_ids]


class Logging:
    """Half a point for some, and feedback in TRL's own table."""

    __name__ = "logging"

    async def __call__(self, completion_ids: Any, log_extra: Any, **_: Any) -> list[float | None]:
        await asyncio.sleep(0)
        log_extra("feedback", [f"first {ids[0]}" for ids in completion_ids])
        return [0.5 if ids[0] % 2 else None for ids in completion_ids]


class Sampled:
    """Completions of many lengths, some without an end, with log-probs and tokens of a tool."""

    def __init__(self, seed: int = 0):
        self.random = torch.Generator().manual_seed(seed)

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        render = trainer.processing_class.apply_chat_template
        rendered = render(prompts, tokenize=True, add_generation_prompt=True, return_dict=True)
        sizes = torch.randint(2, 6, (len(prompts),), generator=self.random).tolist()
        ids = [torch.randint(40, 340, (n,), generator=self.random).tolist() for n in sizes]
        ids = [[*row, *([END] if row[0] % 3 else [])] for row in ids]
        return {
            "prompt_ids": rendered["input_ids"],
            "completion_ids": ids,
            "logprobs": [[-4.0 - 0.3 * (token % 7) for token in row] for row in ids],
            "env_mask": [[int(place != 1) for place in range(len(row))] for row in ids],
            "feedback": [f"of the rollout {row[-1]}" for row in ids],
        }


def train(folder, kind: type = SDPOTrainer, args: Any = None, **changes: Any) -> list[Any]:
    """The rows of an audited training."""
    given = {
        "model": tiny_trainer.model(),
        "processing_class": tiny_trainer.tokenizer(),
        "train_dataset": tiny_trainer.questions(),
        "reward_funcs": [Judge()],
        **changes,
    }
    settings = {"distillation_topk": 20, "audit_every": 1, **given.pop("settings", {})}
    given |= {
        "args": tiny_trainer.arguments(folder, **(args or {})),
        "sdpo_config": SDPOConfig(**settings),
    }
    trainer = kind(**given)
    trainer.train()
    return rows_of(trainer)


def everything() -> dict[str, Any]:
    """Arguments of a training with every way in that rows have."""
    return {
        "reward_funcs": [Judge(), Logging()],
        "rollout_func": Sampled(),
        "model": tiny_trainer.model(initializer_range=0.2),
        "args": {
            "reward_weights": [1.0, 0.7],
            "mask_truncated_completions": True,
            "steps_per_generation": 4,
            "max_steps": 6,
        },
        "settings": {"is_clip": 5.0},
    }


def test_every_way_in_is_followed(tmp_path):
    rows = train(tmp_path, **everything())
    assert [row["first_moved"] for row in rows] == [""] * 3


# --- planted faults -------------------------------------------------------------------------


class Moved(SDPOTrainer):
    """What the trainer keeps of prompts, rewards and feedback is `moved`."""

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        assert self._scored is not None
        self._scored = self.moved(*self._scored)
        return rewards

    def moved(self, prompts, scores, feedback):
        raise NotImplementedError


class FeedbackShifted(Moved):
    def moved(self, prompts, scores, feedback):
        return prompts, scores, later(feedback)


class RewardsShifted(Moved):
    def moved(self, prompts, scores, feedback):
        return prompts, scores.roll(1, 0), feedback


class PromptsShifted(Moved):
    def moved(self, prompts, scores, feedback):
        return later(prompts), scores, feedback


class FeedbackShiftedInPlace(SDPOTrainer):
    def _feedback_sources(self, inputs):
        for function in self.reward_funcs:
            function.last_feedback.append(function.last_feedback.pop(0))
        return super()._feedback_sources(inputs)


class OthersScored(SDPOTrainer):
    """Prompts and completions reach the reward function a row late, its answers are not moved."""

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        columns = (later(column) for column in (prompts, completions, completion_ids_list))
        return super()._calculate_rewards(inputs, *columns)


class GroupsSpread(SDPOTrainer):
    """The sampler deals the prompts in turn; the trainer takes neighbours for a group."""

    def _get_train_sampler(self, dataset=None):
        whole: Any = super()._get_train_sampler(dataset)
        return RepeatSampler(
            data_source=whole.data_source,
            mini_repeat_count=1,
            batch_size=2,
            repeat_count=whole.mini_repeat_count * whole.repeat_count,
            shuffle=False,
        )


class ColumnsShifted(SDPOTrainer):
    def _feedback_sources(self, inputs) -> dict[str, object]:
        sources: dict[str, Any] = dict(super()._feedback_sources(inputs))
        return {name: later(said) for name, said in sources.items()}


class TeacherRowsShifted(SDPOTrainer):
    """What the trainer reports of its prompts is right; what it trains on is moved by a row."""

    def _self_distillation_loss(self, model, inputs):
        names = [name for name in inputs if name.startswith("teacher_")]
        inputs |= {name: inputs[name].roll(1, 0) for name in names}
        return super()._self_distillation_loss(model, inputs)


class WeightsSwapped(SDPOTrainer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.reward_weights = torch.tensor([0.7, 1.0])


def old_log_probs_of_another(monkeypatch):
    real = LogProbsBeforeUpdate.old_log_probs
    monkeypatch.setattr(
        LogProbsBeforeUpdate, "old_log_probs", lambda *given: real(*given).roll(1, 0)
    )


def rollout_weights_squared(monkeypatch):
    real = LogProbsBeforeUpdate.__call__

    def wrong(*given):
        found = real(*given)
        return {**found, "rollout_is_weights": found["rollout_is_weights"].square()}

    monkeypatch.setattr(LogProbsBeforeUpdate, "__call__", wrong)


def tool_tokens_learnt(monkeypatch):
    real = LogProbsBeforeUpdate.__call__

    def wrong(self, model, rollouts):
        del rollouts["tool_mask"]
        return real(self, model, rollouts)

    monkeypatch.setattr(LogProbsBeforeUpdate, "__call__", wrong)


def later(rows: list[Any]) -> list[Any]:
    """Each row where the next one was."""
    return [rows[-1], *rows[:-1]]


def mask_cut(monkeypatch):
    real = GRPOTrainer._generate_and_score_completions

    def wrong(self, inputs):
        batch = real(self, inputs)
        batch["completion_mask"][:, -1] = 0
        return batch

    monkeypatch.setattr(GRPOTrainer, "_generate_and_score_completions", wrong)


TWO_GROUPS = {"per_device_train_batch_size": 4}
PLAIN: dict[str, Any] = {
    "train_dataset": Dataset.from_dict({"prompt": [f"What is {n} + {n}?" for n in range(4)]})
}
COLUMN: dict[str, Any] = {
    "train_dataset": tiny_trainer.dataset(feedback=[f"of the data {n}" for n in range(4)]),
    "reward_funcs": [tiny_trainer.Alternating(3)],
    "args": TWO_GROUPS,
}
FAULTS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "feedback shifted": (FeedbackShifted, "feedback", {}),
    "feedback shifted in place": (FeedbackShiftedInPlace, "feedback", {}),
    "feedback shifted, plain text": (FeedbackShifted, "feedback", PLAIN),
    "column of the data shifted": (ColumnsShifted, "feedback", COLUMN),
    "rewards shifted": (RewardsShifted, "demonstration", {}),
    "rewards of other rows": (OthersScored, "feedback", {}),
    "prompts shifted": (PromptsShifted, "teacher_prompt", {"args": TWO_GROUPS}),
    "groups spread": (GroupsSpread, "demonstration", {}),
    "teacher rows shifted": (TeacherRowsShifted, "teacher_tokens", {}),
    "mask cut": (mask_cut, "teacher_tokens", {}),
    "reward weights swapped": (WeightsSwapped, "demonstration", everything()),
    "old log-probs of another row": (old_log_probs_of_another, "importance", everything()),
    "rollout weights squared": (rollout_weights_squared, "importance", everything()),
    "tokens of tools learnt": (tool_tokens_learnt, "aggregate", everything()),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_rows_that_are_mixed_up_are_found(fault, tmp_path, monkeypatch):
    plant, stage, changes = FAULTS[fault]
    kind = plant if isinstance(plant, type) else SDPOTrainer
    if kind is not plant:
        plant(monkeypatch)
    changes = {**changes, **({"rollout_func": Sampled()} if "rollout_func" in changes else {})}
    with pytest.warns(ParityWarning, match=f"{stage} moved first"):
        rows = train(tmp_path, kind, **changes)
    assert stage in {row["first_moved"] for row in rows}


def test_reward_functions_that_are_not_heard_end_the_audit(tmp_path):
    class Replacing(SDPOTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.reward_funcs = [Judge()]

    with pytest.raises(SourceError, match="did not hear"):
        train(tmp_path, Replacing)


def test_a_group_is_rows_of_one_prompt_wherever_they_lie():
    assert groups(["a", "b", "a", "b"], 2) == [0, 1, 0, 1]
    assert groups(["a", "a", "a", "a"], 2) == [0, 0, 1, 1]
    assert groups(["a", "b", "a", "a", "b", "a"], 2) == [0, 1, 0, 2, 1, 2]


def test_a_reward_function_is_the_same_to_everybody(tmp_path):
    judge = Judge()
    trainer = tiny_trainer.trainer(tmp_path, SDPOConfig(audit_every=1), reward_funcs=[judge])
    heard = trainer.reward_funcs[0]
    heard.last_feedback = ["set from outside"]
    assert judge.last_feedback == heard.last_feedback == ["set from outside"]
    assert heard.__name__ == "judge"
