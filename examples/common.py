"""What the examples share: command line, model and tokenizer, and a task with a known answer.

Every example runs as it is with a model from the hub, and with `--tiny` in seconds on a CPU: a
model of some thousand random weights, with the tokenizer that comes with the package.
"""

import argparse
import re
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig  # pyright: ignore[reportPrivateImportUsage]

from sdpo.fixtures import PACKAGED

MODEL = "Qwen/Qwen2.5-0.5B-Instruct"


def options(description: str | None, **defaults: Any) -> argparse.Namespace:
    """The command line of an example."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", default=MODEL, help="model on the hub, or a folder")
    parser.add_argument("--tiny", action="store_true", help="random tiny model, for a trial run")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps")
    parser.add_argument("--length", type=int, help="most tokens of a completion [256, tiny 8]")
    parser.add_argument("--out", default="output", help="folder for checkpoints and records")
    parser.set_defaults(**defaults)
    return parser.parse_args()


def load(chosen: argparse.Namespace) -> tuple[Any, Any]:
    """Model and tokenizer. Float32 weights: a bfloat16 average would stall at small rates."""
    if not chosen.tiny:
        model = AutoModelForCausalLM.from_pretrained(chosen.model, dtype=torch.float32)
        return model, AutoTokenizer.from_pretrained(chosen.model)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=426,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    tokenizer = AutoTokenizer.from_pretrained(PACKAGED / "reprompt" / "tokenizer")
    return Qwen2ForCausalLM(config), tokenizer


def arguments(chosen: argparse.Namespace, **changes: Any) -> GRPOConfig:
    """TRL's settings: 8 attempts per problem, one optimizer step per generation."""
    settings: dict[str, Any] = {
        "output_dir": chosen.out,
        "max_steps": chosen.steps,
        "per_device_train_batch_size": 2 if chosen.tiny else 8,
        "gradient_accumulation_steps": 2 if chosen.tiny else 4,
        "num_generations": 4 if chosen.tiny else 8,
        "max_completion_length": chosen.length or (8 if chosen.tiny else 256),
        "learning_rate": 1e-5,
        "lr_scheduler_type": "constant",
        "use_cpu": chosen.tiny,
        "bf16": not chosen.tiny and torch.cuda.is_available(),
        "gradient_checkpointing": not chosen.tiny,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        **changes,
    }
    return GRPOConfig(**settings)


def additions(rows: int = 64) -> Dataset:
    """Sums of two numbers, with their results."""
    numbers = [(17 * row % 90 + 10, 31 * row % 90 + 10) for row in range(rows)]
    prompts = [
        [
            {"role": "system", "content": "Think, then end with `Answer: NUMBER`."},
            {"role": "user", "content": f"What is {a} + {b}?"},
        ]
        for a, b in numbers
    ]
    return Dataset.from_dict({"prompt": prompts, "result": [a + b for a, b in numbers]})


class AnswerReward:
    """1 for the right number, with feedback for the teacher's prompt otherwise."""

    __name__ = "answer"

    def __init__(self):
        self.last_feedback: list[str] = []

    def __call__(self, completions: list[Any], result: list[int], **columns: Any) -> list[float]:
        """Score completions; `last_feedback` then has a text for each wrong one."""
        texts = [completion[0]["content"] for completion in completions]
        found = [re.findall(r"Answer: *(-?\d+)", text)[-1:] for text in texts]
        right = [answer == [str(n)] for answer, n in zip(found, result, strict=True)]
        self.last_feedback = [
            "" if fine else f"Your answer was {answer[0] if answer else 'missing'}, not right."
            for fine, answer in zip(right, found, strict=True)
        ]
        return [float(fine) for fine in right]
