"""Measures what the lockstep audit costs, as a ratio of a training step's time without it.

python -m sdpo.benchmark.performance.callback_overhead --size tiny small --steps 40
python -m sdpo.benchmark.performance.callback_overhead --size medium --steps 8 --bf16     (on a GPU)

Ordinary training: a random model, 8 sampled answers to a problem in two micro-batches, AdamW. One
run audits every second update. The callback's own clock is set against the rest of the same step,
so that both meet the same load and the same pace of the machine; medians count. `unchecked` is what
the callback does at a step that it does not check. Checks that also measure the budgets (the 1st,
2nd, 16th, 128th and so on) are kept apart. `rest ÷ plain` tells whether a check slows what the
clock does not see. `every 10th` is the cost spread over a run of `--updates` updates, with all its
measurements of budgets in it. On a GPU all clocks wait for the device.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from transformers import PrinterCallback, TrainerCallback

from sdpo.benchmark.performance.own_process import synchronized_seconds
from sdpo.benchmark.performance.random_models import (
    qwen2_shape,
    random_model,
    reward_every,
    trainer_of,
)
from sdpo.benchmark.performance.tables import options
from sdpo.benchmark.runs.environment import peak_memory_mib
from sdpo.lockstep.parity_callback import MEASURED_AT
from sdpo.runtime.markdown_table import markdown_table
from sdpo.settings.config import SDPOConfig

if TYPE_CHECKING:
    from sdpo.lockstep.parity_callback import ParityCallback
    from sdpo.trainer.sdpo_trainer import SDPOTrainer

SHAPES = {
    "tiny": qwen2_shape(32, 48, 2, 4, 2, 426),
    "small": qwen2_shape(640, 2560, 12, 10, 10, 32_000, tied=True),
    "medium": qwen2_shape(896, 4864, 24, 14, 2, 151_936, tied=True),
}
EVERY = 10
"""Updates from one check to the next, for the cost over a long run."""
PROBLEM = "Write a function `total(items)` that adds up the numbers of a list and returns the sum."
HEAD = ("model", "parameters", "step, s", "unchecked", "a check ÷ step", "(middle half)")
HEAD += ("with budgets", "rest ÷ plain", "every 10th", "peak, MiB")


class StepSeconds(NamedTuple):
    """Divides a step into what the audit took of it, and the rest."""

    rest: float
    audit: float


class Clock(TrainerCallback):
    """Measures each optimizer step, generation included, and the audit's part of it."""

    def __init__(self, audit: "ParityCallback"):
        self.audit = audit
        self.steps: list[StepSeconds] = []
        self.began = (0.0, 0.0)

    def on_step_begin(self, args, state, control, **kwargs):
        """Start the clock, before anything is generated."""
        self.began = synchronized_seconds(), self.audit.seconds

    def on_step_end(self, args, state, control, **kwargs):
        """Stop the clock; added last, this callback comes after the audit."""
        total = synchronized_seconds() - self.began[0]
        audit = self.audit.seconds - self.began[1]
        self.steps.append(StepSeconds(total - audit, audit))
        step = f"{total:.1f} s, {audit:.1f} s of them the audit's"
        print(f"step {len(self.steps)} of {args.max_steps}: {step}", file=sys.stderr, flush=True)


def build(size: str, chosen: argparse.Namespace, folder: Path) -> "SDPOTrainer":
    """Build a trainer of a random model, every second of whose updates is checked."""
    return trainer_of(
        random_model(SHAPES[size]),
        SDPOConfig(audit_every=2),
        [PROBLEM] * chosen.steps,
        folder,
        reward_every(2),
        per_device_train_batch_size=chosen.attempts // 2,
        gradient_accumulation_steps=2,
        num_generations=chosen.attempts,
        max_completion_length=chosen.length,
        max_steps=chosen.steps,
        learning_rate=1e-5,
        bf16=chosen.bf16,
        logging_steps=10,
    )


def measure(size: str, chosen: argparse.Namespace) -> list[str]:
    """Train one model; returns a row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(size, chosen, Path(folder))
        audit = trainer.audit
        if audit is None:
            raise SystemExit("the trainer has no audit to measure")
        audit.clock = synchronized_seconds
        clock = Clock(audit)
        trainer.add_callback(clock)
        trainer.remove_callback(PrinterCallback)  # it writes into the table
        trainer.train()
        departures = [row["first_moved"] for row in audit.checks.rows]
    if any(departures):
        raise SystemExit(f"the reference disagrees: {departures}")
    kinds: dict[str, list[StepSeconds]] = {"plain": [], "check": [], "measured": []}
    for number, seconds in enumerate(clock.steps[1:], 1):  # the first one warms up
        check = number // 2 + 1
        kind = "plain" if number % 2 else ("measured" if check in MEASURED_AT else "check")
        kinds[kind].append(seconds)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    memory = f"{peak_memory_mib():.0f}"
    return [size, f"{parameters:,}", *costs(kinds, chosen.updates), memory]


def costs(kinds: dict[str, list[StepSeconds]], updates: int) -> list[str]:
    """Fill the cells of the table from `step` to `every 10th`.

    Args:
        kinds: steps without a check (`plain`), with one (`check`), and with one that also measures
            the budgets (`measured`).
        updates: length of the run over which `every 10th` spreads the cost.
    """
    relative = {
        kind: sorted(step.audit / step.rest for step in steps) for kind, steps in kinds.items()
    }
    step = median(step.rest for step in kinds["plain"])
    check, measured = median(relative["check"]), max(relative["measured"])
    checks = range(1, updates // EVERY + 1)
    total = sum(measured if number in MEASURED_AT else check for number in checks)
    quarter = len(relative["check"]) // 4
    low, high = relative["check"][quarter], relative["check"][-1 - quarter]
    rest = median(step.rest for step in kinds["check"]) / step
    cells = [f"{step:.3f}", f"{median(relative['plain']):.3%}", f"{check:.1%}"]
    cells += [f"{low:.1%} … {high:.1%}", f"{measured:.1%}", f"{rest:.2f}"]
    return [*cells, f"{total / updates:.2%}"]


def main() -> None:
    """Measure and print a table."""
    parser = options(__doc__, steps=40, length=128, attempts=8, updates=1000)
    parser.add_argument("--size", nargs="+", choices=SHAPES, default=["tiny"])
    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    chosen = parser.parse_args()
    print(markdown_table(HEAD, [measure(size, chosen) for size in chosen.size], left=len(HEAD)))


if __name__ == "__main__":
    main()
