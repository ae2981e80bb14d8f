"""What the lockstep audit costs, as a ratio of the time of a training step without it.

python benchmark/performance/callback_overhead.py --size tiny small --steps 40
python benchmark/performance/callback_overhead.py --size medium --steps 8 --bf16     (on a GPU)

Ordinary training: a random model, 8 sampled answers to a problem in two micro-batches, AdamW. One
run audits every second update. The callback's own clock is set against the rest of the same step,
so that both meet the same load and the same pace of the machine; medians count. `unchecked` is what
the callback does at a step that it does not check. Checks that also measure the budgets (the 1st,
2nd, 16th, 128th and so on) are kept apart. `rest ÷ plain` tells whether a check slows what the
clock does not see. `every 10th` is the cost spread over a run of `--updates` updates, with all its
measurements of budgets in it. On a GPU all clocks wait for the device.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoTokenizer,
    PrinterCallback,
    Qwen2Config,
    Qwen2ForCausalLM,
    TrainerCallback,
)
from trl import GRPOConfig  # pyright: ignore[reportPrivateImportUsage]

from sdpo.fixtures import PACKAGED
from sdpo.lockstep.parity_callback import MEASURED_AT
from sdpo.settings.config import SDPOConfig
from sdpo.trainer.sdpo_trainer import SDPOTrainer

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
        "hidden_size": 640,
        "intermediate_size": 2560,
        "num_hidden_layers": 12,
        "num_attention_heads": 10,
        "num_key_value_heads": 10,
        "vocab_size": 32000,
        "tie_word_embeddings": True,
    },
    "medium": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
}
EVERY = 10
PROBLEM = "Write a function `total(items)` that adds up the numbers of a list and returns the sum."


def reward(completions: list[Any], **columns: Any) -> list[float]:
    """Every second completion succeeds."""
    return [float(row % 2 == 0) for row in range(len(completions))]


class Clock(TrainerCallback):
    """Seconds of each optimizer step, generation included, and the audit's share of them."""

    def __init__(self, audit: Any):
        self.audit = audit
        self.steps: list[tuple[float, float]] = []
        self.began = (0.0, 0.0)

    def on_step_begin(self, args, state, control, **kwargs):
        """The step begins, before anything is generated."""
        self.began = now(), self.audit.seconds

    def on_step_end(self, args, state, control, **kwargs):
        """The step is over; added last, this callback comes after the audit."""
        whole, own = now() - self.began[0], self.audit.seconds - self.began[1]
        self.steps.append((whole - own, own))
        step = f"{whole:.1f} s, {own:.1f} s of them the audit's"
        print(f"step {len(self.steps)} of {args.max_steps}: {step}", file=sys.stderr, flush=True)


def now() -> float:
    """The clock, once the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def build(
    size: str, steps: int, length: int, attempts: int, folder: Path, *, bf16: bool = False
) -> SDPOTrainer:
    """A trainer of a random model, every second of whose updates is checked."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(PACKAGED / "reprompt" / "tokenizer")
    prompt = [{"role": "user", "content": PROBLEM}]
    return SDPOTrainer(
        model=Qwen2ForCausalLM(Qwen2Config(**SIZES[size])),
        args=GRPOConfig(
            output_dir=str(folder),
            per_device_train_batch_size=attempts // 2,
            gradient_accumulation_steps=2,
            num_generations=attempts,
            max_completion_length=length,
            max_steps=steps,
            learning_rate=1e-5,
            use_cpu=not torch.cuda.is_available(),
            bf16=bf16,
            gradient_checkpointing=False,
            save_strategy="no",
            logging_steps=10,
            report_to=[],
            disable_tqdm=True,
        ),
        sdpo_config=SDPOConfig(audit_every=2),
        processing_class=tokenizer,
        reward_funcs=[reward],
        train_dataset=Dataset.from_dict({"prompt": [prompt] * steps}),
    )


def measure(size: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """Median seconds of plain steps, and what the audit adds to each kind of step."""
    with tempfile.TemporaryDirectory() as folder:
        steps = chosen.steps
        trainer = build(size, steps, chosen.length, chosen.attempts, Path(folder), bf16=chosen.bf16)
        assert trainer.audit is not None
        trainer.audit.clock = now
        clock = Clock(trainer.audit)
        trainer.add_callback(clock)
        trainer.remove_callback(PrinterCallback)  # it writes into the table
        trainer.train()
        found = [row["first_moved"] for row in trainer.audit.checks.rows]
    assert not any(found), f"the reference disagrees: {found}"
    kinds: dict[str, list[tuple[float, float]]] = {"plain": [], "check": [], "measured": []}
    for number, seconds in enumerate(clock.steps[1:], 1):  # the first one warms up
        check = number // 2 + 1
        kind = "plain" if number % 2 else ("measured" if check in MEASURED_AT else "check")
        kinds[kind].append(seconds)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    return {"size": size, "parameters": parameters} | ratios(kinds, chosen.updates)


def ratios(kinds: dict[str, list[tuple[float, float]]], updates: int) -> dict[str, float]:
    """Costs relative to the rest of the same step."""
    shares = {kind: sorted(own / rest for rest, own in steps) for kind, steps in kinds.items()}
    step = median(rest for rest, _ in kinds["plain"])
    check, budget = median(shares["check"]), max(shares["measured"])
    checks = range(1, updates // EVERY + 1)
    total = sum(budget if number in MEASURED_AT else check for number in checks)
    quarter = len(shares["check"]) // 4
    return {
        "step": step,
        "unchecked": median(shares["plain"]),
        "check": check,
        "low": shares["check"][quarter],
        "high": shares["check"][-1 - quarter],
        "budget": budget,
        "rest": median(rest for rest, _ in kinds["check"]) / step,
        "tenth": total / updates,
    }


def peak() -> float:
    """Most memory so far in GB: the GPU's, or this process's."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["tiny"])
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps that are measured")
    parser.add_argument("--length", type=int, default=128, help="tokens of a completion")
    parser.add_argument("--attempts", type=int, default=8, help="completions of a problem, even")
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    parser.add_argument("--updates", type=int, default=1000, help="length of the run for `tenth`")
    chosen = parser.parse_args()
    print(
        "| model | parameters | step, s | unchecked | a check ÷ step | (middle half) "
        "| with budgets | rest ÷ plain | every 10th | peak, GB |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for size in chosen.size:
        r = measure(size, chosen)
        print(
            f"| {size} | {r['parameters']:,} | {r['step']:.3f} | {r['unchecked']:.3%} "
            f"| {r['check']:.1%} | {r['low']:.1%} … {r['high']:.1%} | {r['budget']:.1%} "
            f"| {r['rest']:.2f} | {r['tenth']:.2%} | {peak():.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
