"""What makes a training and its lockstep replica drift apart: the optimizer, or the precision?

python benchmark/performance/lockstep_drift.py --steps 12

The same tiny training several times. Every single update is within its budget, and the two runs
differ by rounding alone, in gradients of which many entries are nothing but rounding. AdamW divides
each entry by its own size, so that such entries make steps as long as all others; SGD does not, a
larger epsilon damps them, and in float64 they are 1e-9 of what they were.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig  # pyright: ignore[reportPrivateImportUsage]

from sdpo.fixtures import PACKAGED
from sdpo.settings.config import SDPOConfig
from sdpo.trainer.sdpo_trainer import SDPOTrainer

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 426}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
RUNS: dict[str, tuple[dict[str, Any], torch.dtype]] = {
    "AdamW, epsilon 1e-8": ({}, torch.float32),
    "AdamW, epsilon 1e-4": ({"adam_epsilon": 1e-4}, torch.float32),
    "SGD": ({"optim": "sgd"}, torch.float32),
    "AdamW, epsilon 1e-8, both in float64": ({}, torch.float64),
}


def reward(completions: list[Any], **columns: Any) -> list[float]:
    """Every third completion succeeds."""
    return [float(row % 3 == 0) for row in range(len(completions))]


def drift(args: dict[str, Any], dtype: torch.dtype, steps: int, folder: Path) -> list[float]:
    """Distance of the student from its replica after each step, relative to the way gone."""
    torch.manual_seed(0)
    prompts = [[{"role": "user", "content": f"What is {n} + {n}?"}] for n in range(4)]
    settings: dict[str, Any] = {"learning_rate": 1e-2, "lr_scheduler_type": "constant", **args}
    shape: dict[str, Any] = {**SIZES, **HEADS, "attn_implementation": "sdpa"}
    model: Any = Qwen2ForCausalLM(Qwen2Config(**shape))
    trainer = SDPOTrainer(
        model=model.to(dtype),
        args=GRPOConfig(
            output_dir=str(folder),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            num_generations=4,
            max_completion_length=6,
            max_steps=steps,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
            **settings,
        ),
        sdpo_config=SDPOConfig(distillation_topk=20, audit_lockstep=True),
        processing_class=AutoTokenizer.from_pretrained(PACKAGED / "reprompt" / "tokenizer"),
        reward_funcs=[reward],
        train_dataset=Dataset.from_dict({"prompt": prompts}),
    )
    trainer.train()
    assert trainer.audit is not None
    return [row["weights"] for row in trainer.audit.drift.rows]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    chosen = parser.parse_args()
    marks = sorted({1, chosen.steps // 3, chosen.steps} - {0})
    print("| optimizer | " + " | ".join(f"after step {mark}" for mark in marks) + " |")
    print("|---|" + "---|" * len(marks))
    for name, (args, dtype) in RUNS.items():
        with tempfile.TemporaryDirectory() as folder:
            found = drift(args, dtype, chosen.steps, Path(folder))
        cells = " | ".join(f"{found[mark - 1]:.1e}" for mark in marks)
        print(f"| {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
