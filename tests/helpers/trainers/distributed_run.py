"""Train a few steps with fixed completions, in one process or several; used by the tests.

python distributed_run.py OUT --group 8 --silent-rank 0 --semantics exact
"""

import argparse
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sdpo.settings.config import SDPOConfig
from sdpo.trainer.sdpo_trainer import SDPOTrainer
from sdpo.update.observer import UpdateObserver
from tests.helpers.measured import rounding_of
from tests.helpers.trainers import tiny_trainer

ROWS = 8
END = 420


def model() -> torch.nn.Module:
    """Large initial weights, so that teacher and student differ by much more than rounding."""
    return tiny_trainer.model(initializer_range=tiny_trainer.WIDE)


def completions(prompts: list[Any], trainer: Any) -> dict[str, Any]:
    """Completions that depend on the place of a row among all processes' rows, of many lengths."""
    first = trainer.accelerator.process_index * len(prompts)
    ids = [
        [40 + (7 * row + 3 * token) % 300 for token in range(1 + (3 * row) % 5)] + [END]
        for row in range(first, first + len(prompts))
    ]
    render = trainer.processing_class.apply_chat_template
    rendered = render(prompts, tokenize=True, add_generation_prompt=True, return_dict=True)
    return {
        "prompt_ids": rendered["input_ids"],
        "completion_ids": ids,
        "logprobs": [[-1.0] * len(row) for row in ids],
    }


class Reward:
    """Success for two rows of the second half, or of every group."""

    __name__ = "reward"

    def __init__(self, rank: int, everywhere: bool):
        self.rank, self.everywhere = rank, everywhere

    def __call__(self, completion_ids: list[list[int]], **_: Any) -> list[float]:
        first = self.rank * len(completion_ids)
        rows = range(first, first + len(completion_ids))
        if self.everywhere:
            return [float(row % 4 == 1) for row in rows]
        return [float(row in (5, 6)) for row in rows]


class CountedHere(SDPOTrainer):
    """A fault of `exact`: tokens are counted on this process alone."""

    def _weigh(self, parts):
        real = self.accelerator.reduce
        vars(self.accelerator)["reduce"] = lambda tensor, **_: tensor
        super()._weigh(parts)
        vars(self.accelerator)["reduce"] = real


class OneRankTwice(SDPOTrainer):
    """A fault of one process: its losses count twice."""

    def _scale(self, inputs):
        return super()._scale(inputs) * (1 + self.accelerator.process_index)


class OwnRowsOnly(SDPOTrainer):
    """A fault of the prompts: the first process sees no demonstrations of the second."""

    def _generate_and_score_completions(self, inputs):
        import sdpo.trainer.sdpo_trainer

        real = sdpo.trainer.sdpo_trainer.teacher_inputs

        def wrong(rollouts, *others, **settings):
            rewards = rollouts.rewards.clone()
            rewards[len(rewards) // 2 :] = 0
            return real(rollouts._replace(rewards=rewards), *others, **settings)

        sdpo.trainer.sdpo_trainer.teacher_inputs = wrong
        try:
            return super()._generate_and_score_completions(inputs)
        finally:
            sdpo.trainer.sdpo_trainer.teacher_inputs = real


FAULTS = {"none": SDPOTrainer, "here": CountedHere, "twice": OneRankTwice, "own": OwnRowsOnly}


def run(
    out: Path,
    group: int,
    everywhere: bool,
    semantics: str,
    audit: bool,
    fault: str,
    hybrid: float,
    loss: str,
    share: str,
) -> None:
    torch.set_num_threads(1)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    args = {
        "per_device_train_batch_size": ROWS // 2 // processes,
        "gradient_accumulation_steps": 2,
        "num_generations": group,
        "max_steps": 3,
        "optim": "sgd",
        "learning_rate": 0.5,
        "shuffle_dataset": False,
    }
    config = SDPOConfig(
        distillation_topk=20,
        micro_batch_semantics=semantics,
        rollout_is_threshold=None,
        teacher_update_rate=0.3,
        audit_every=int(audit),
        audit_lockstep=audit,
        hybrid_lambda=hybrid,
        loss_implementation=loss,
        share_prompts=share,
    )
    trainer = FAULTS[fault](
        model=model(),
        args=tiny_trainer.arguments(out, **args),
        sdpo_config=config,
        processing_class=tiny_trainer.tokenizer(),
        reward_funcs=[Reward(rank, everywhere)],
        train_dataset=tiny_trainer.dataset(12),
        rollout_func=completions,
    )
    moves = []
    update = trainer.teacher.update
    trainer.teacher.update = lambda *a, **k: (moves.append(1), update(*a, **k))[1]
    signal: list[float] = []
    if loss == "logits":  # the fused loss leaves rows out where nobody looks
        trainer.observers.append(Signal(signal))
    before, gaps = tiny_trainer.weights(trainer.model), tiny_trainer.gaps_of(trainer)
    trainer.train()
    after = tiny_trainer.weights(trainer.model)
    found = {f"student.{n}": p for n, p in after.items()}
    found |= {"rounding": torch.tensor(rounding_of(gaps, before, after))}
    found |= {f"teacher.{n}": p for n, p in trainer.teacher.state_dict().items()}
    found |= {"moves": torch.tensor(len(moves)), "signal": torch.tensor(signal)}
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    save_file(found | {"losses": torch.tensor(losses)}, out / f"rank{rank}.safetensors")


class Signal(UpdateObserver):
    """Keeps the number of rows with a teacher signal on this process."""

    def __init__(self, seen: list[float]):
        self.seen = seen

    def on_rollouts(self, rollouts: Any, trace: Any, batch: dict[str, Any]) -> None:
        self.seen.append(batch["self_distillation_mask"].sum().item())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--everywhere", action="store_true")
    parser.add_argument("--semantics", default="exact")
    parser.add_argument("--audit", action="store_true")
    parser.add_argument("--fault", choices=FAULTS, default="none")
    parser.add_argument("--hybrid", type=float, default=0.0)
    parser.add_argument("--loss", default="logits")
    parser.add_argument("--share", default="none")
    options = vars(parser.parse_args())
    run(**options)
