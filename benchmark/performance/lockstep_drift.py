"""Tells what makes a training and its lockstep replica drift apart: optimizer or precision.

python -m sdpo.benchmark.performance.lockstep_drift --steps 12

The same tiny training several times. Every single update is within its budget, and the two runs
differ by rounding alone, in gradients of which many entries are nothing but rounding. AdamW divides
each entry by its own size, so that such entries make steps as long as all others; SGD does not, a
larger epsilon damps them, and in float64 they are 1e-9 of what they were.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from sdpo.benchmark.performance.random_models import (
    qwen2_shape,
    random_model,
    reward_every,
    trainer_of,
)
from sdpo.benchmark.performance.tables import options
from sdpo.runtime.markdown_table import markdown_table
from sdpo.settings.config import SDPOConfig

SHAPE = qwen2_shape(32, 48, 2, 4, 2, 426)
RUNS: dict[str, tuple[Mapping[str, float | str], torch.dtype]] = {
    "AdamW, epsilon 1e-8": ({}, torch.float32),
    "AdamW, epsilon 1e-4": ({"adam_epsilon": 1e-4}, torch.float32),
    "SGD": ({"optim": "sgd"}, torch.float32),
    "AdamW, epsilon 1e-8, both in float64": ({}, torch.float64),
}


def drift(
    optimizer: Mapping[str, float | str], dtype: torch.dtype, steps: int, folder: Path
) -> list[float]:
    """Measure the student's distance from its replica after each step, over the way gone."""
    model = random_model(SHAPE, attn_implementation="sdpa")
    trainer = trainer_of(
        model.to(dtype),  # pyright: ignore[reportArgumentType]
        SDPOConfig(distillation_topk=20, audit_lockstep=True),
        [f"What is {n} + {n}?" for n in range(4)],
        folder,
        reward_every(3),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        num_generations=4,
        max_completion_length=6,
        max_steps=steps,
        use_cpu=True,
        logging_strategy="no",
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        **optimizer,
    )
    trainer.train()
    assert trainer.audit is not None
    return [float(row["weights"]) for row in trainer.audit.drift.rows]


def main() -> None:
    """Print a table."""
    steps = options(__doc__, steps=12).parse_args().steps
    marks = sorted({1, steps // 3, steps} - {0})
    rows = []
    for name, (optimizer, dtype) in RUNS.items():
        with tempfile.TemporaryDirectory() as folder:
            distances = drift(optimizer, dtype, steps, Path(folder))
        rows.append([name, *(f"{distances[mark - 1]:.1e}" for mark in marks)])
    print(markdown_table(["optimizer", *(f"after step {mark}" for mark in marks)], rows))


if __name__ == "__main__":
    main()
