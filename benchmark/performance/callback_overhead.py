"""What the lockstep audit costs, as a ratio of the time of a training step without it.

python benchmark/performance/callback_overhead.py --size tiny small --every 1 10 --steps 20

A random model and random completions of full length, so that nothing depends on what was learnt.
The callback's own clock is compared with the rest of the run. `measured` repeats float64 runs at
the checks 1, 2, 4, 8 …; `steady` leaves those checks out, which is what a long run tends to.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig  # pyright: ignore[reportPrivateImportUsage]

from sdpo.config import SDPOConfig
from sdpo.fixtures import PACKAGED
from sdpo.trainer import SDPOTrainer

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 426,
    },
    "small": {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "vocab_size": 32000,
    },
}


def reward(completions: list[Any], **columns: Any) -> list[float]:
    """Every second completion succeeds."""
    return [float(row % 2 == 0) for row in range(len(completions))]


def build(size: str, every: int, steps: int, length: int, folder: Path) -> SDPOTrainer:
    """A trainer of a random model whose updates are checked."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(PACKAGED / "reprompt" / "tokenizer")
    prompt = [{"role": "user", "content": "What is 2 + 2?"}]
    cuda = torch.cuda.is_available()
    return SDPOTrainer(
        model=Qwen2ForCausalLM(Qwen2Config(**SIZES[size])),
        args=GRPOConfig(
            output_dir=str(folder),
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            num_generations=4,
            max_completion_length=length,
            generation_kwargs={"min_new_tokens": length},
            max_steps=steps,
            use_cpu=not cuda,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            logging_steps=steps,
            report_to=[],
            disable_tqdm=True,
        ),
        sdpo_config=SDPOConfig(audit_every=every),
        processing_class=tokenizer,
        reward_funcs=[reward],
        train_dataset=Dataset.from_dict({"prompt": [prompt] * steps}),
    )


def measure(size: str, every: int, steps: int, length: int) -> dict[str, Any]:
    """Seconds of a step without the callback, and the callback's share."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(size, every, steps, length, Path(folder))
        began = time.perf_counter()
        trainer.train()
        total, audit = time.perf_counter() - began, trainer.recorder
    step = (total - audit.seconds) / steps
    checks = [row["seconds"] for row in audit.rows]
    plain = [s for number, s in enumerate(checks, 1) if number & (number - 1)] or checks[-1:]
    copying = (audit.seconds - sum(checks)) / steps
    steady = (sum(plain) / len(plain) / every + copying) / step
    return {
        "size": size,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "every": every,
        "step_seconds": step,
        "measured": audit.seconds / steps / step,
        "steady": steady,
    }


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["tiny"])
    parser.add_argument("--every", nargs="+", type=int, default=[1, 10])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--length", type=int, default=64, help="tokens of a completion")
    chosen = parser.parse_args()
    print("| model | parameters | every | step, s | overhead measured | overhead steady |")
    print("|---|---|---|---|---|---|")
    for size in chosen.size:
        for every in chosen.every:
            row = measure(size, every, chosen.steps, chosen.length)
            print(
                f"| {size} | {row['parameters']:,} | {every} | {row['step_seconds']:.3f} "
                f"| {row['measured']:.1%} | {row['steady']:.1%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
