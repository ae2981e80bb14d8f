"""Measures an optimizer step of our trainer, by logits and fused, of TRL's and of sdpo-rl's.

python -m sdpo.benchmark.performance.trainer_step --repeats 3
python -m sdpo.benchmark.performance.trainer_step --prompt 512 --name trainer_step_prompts

The real trainer classes learn from the same scripted rollouts on the same random model; nothing is
sampled, so a step is scoring, teacher prompts, forward and backward passes, AdamW and the teacher's
update. Each run is a process of its own, the trainers taking turns. `signal` is the share of rows
that have a teacher prompt, `prompt` about the number of tokens that make the question longer. Time
is the median of the steps after the first. CPU time tells more beside other programs, best with
`--threads 1`, because threads that wait use it too. Memory is the process's peak while it trains
beyond what it held before (Linux), optimizer state and gradients included.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from sdpo.benchmark.performance.own_process import MemoryPeak, measure_in_process
from sdpo.benchmark.performance.random_models import qwen2_shape, random_model
from sdpo.benchmark.performance.tables import (
    Row,
    add_output_options,
    legend_below,
    machine,
    median_and_range,
    options,
    write_table,
)

if TYPE_CHECKING:
    import pandas as pd

    from sdpo.parity.trainers.scenarios.scenario import Scenario

SHAPES = {
    "tiny": qwen2_shape(128, 512, 2, 4, 4, 32_000),
    "deep": qwen2_shape(512, 2048, 8, 4, 4, 32_000),
    "small": qwen2_shape(256, 1024, 4, 4, 4, 151_936),
}
GROUPS, GROUP_SIZE, ROWS_AT_ONCE = 2, 4, 4
OURS: Mapping[str, Mapping[str, str]] = {
    "ours, logits": {"loss_implementation": "logits"},
    "ours, fused": {"loss_implementation": "fused"},
    "ours, fused, shared prompts": {"loss_implementation": "fused", "share_prompts": "both"},
}
PEERS = ("trl", "sdpo-rl")
TRAINERS = (*OURS, *PEERS)


def scenario(chosen: argparse.Namespace, settings: Mapping[str, str | float]) -> "Scenario":
    """Script generations of two groups of four rollouts, learnt from in two micro-batches each."""
    from sdpo.parity.trainers.scenarios.scenario import Generation, Rollout, Scenario

    question, answer = (" 1" * (count // 2) for count in (chosen.prompt[0], chosen.length))
    conversations = tuple(
        ({"role": "user", "content": f"Count from {group}.{question}"},) for group in range(GROUPS)
    )
    rollouts = tuple(
        Rollout(f"{row}{answer}", float(row // GROUP_SIZE < chosen.signal[0] * GROUPS))
        for row in range(GROUPS * GROUP_SIZE)
    )
    return Scenario(
        id="speed",
        description="long completions",
        generations=(Generation(conversations, rollouts),) * chosen.steps,
        self_distillation={"distillation_topk": 100, "alpha": 0.5, **settings},
        micro_batch_size=ROWS_AT_ONCE,
        accumulation=GROUPS * GROUP_SIZE // ROWS_AT_ONCE,
        steps_per_generation=GROUPS * GROUP_SIZE // ROWS_AT_ONCE,
        optimizer={"name": "AdamW", "lr": 1e-5},
    )


def train(name: str, chosen: argparse.Namespace, folder: Path) -> Row:
    """Train in this process; seconds of a step, and GiB."""
    from transformers import TrainerCallback

    from sdpo.parity.trainers.adapters.sdpo_rl import SdpoRl
    from sdpo.parity.trainers.adapters.sdpo_trainer import OwnTrainer
    from sdpo.parity.trainers.adapters.trl import TRL
    from sdpo.parity.trainers.recording.hf_trainer import make_parts
    from sdpo.parity.trainers.recording.quiet_packages import quiet

    class Clock(TrainerCallback):
        wall: list[float] = []  # noqa: RUF012
        cpu: list[float] = []  # noqa: RUF012
        began = (0.0, 0.0)

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.began = time.perf_counter(), time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.wall.append(time.perf_counter() - self.began[0])
            self.cpu.append(time.process_time() - self.began[1])

    adapter = {"trl": TRL, "sdpo-rl": SdpoRl}.get(name, OwnTrainer)()
    script = scenario(chosen, OURS.get(name, {}))
    model, clock = random_model(SHAPES[chosen.size[0]], max_position_embeddings=4096), Clock()
    model.save_pretrained(folder / "model")  # where the adapters look for one
    with quiet():
        parts, player = make_parts(adapter, script, folder)
        trainer, _ = adapter.build(parts)
        trainer.model.generate = player.generate
        trainer.add_callback(clock)
        peak = MemoryPeak()
        trainer.train()
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "step_s": median(clock.wall[1:]),
        "step_cpu_s": median(clock.cpu[1:]),
        "memory_gib": peak.gib(),
    }


def rounds(chosen: argparse.Namespace) -> "pd.DataFrame":
    """Make all trainings, each in a fresh interpreter, trainers in turn."""
    import pandas as pd

    rows = []
    conditions = product(chosen.size, chosen.prompt, chosen.signal, range(chosen.repeats), TRAINERS)
    for size, prompt, signal, number, name in conditions:
        shape: Row = {"size": size, "prompt": prompt, "signal": signal}
        common = {"steps": chosen.steps, "length": chosen.length, "threads": chosen.threads}
        arguments = [
            text for key, value in (shape | common).items() for text in (f"--{key}", str(value))
        ]
        labels = shape | {"trainer": name, "round": number}
        rows += measure_in_process(__spec__.name, ["--one", name, *arguments], labels)
    return pd.DataFrame(rows)


def summary(rows: "pd.DataFrame") -> "pd.DataFrame":
    """Summarize models, shares and trainers: medians, and ratios to the best peer by round."""
    import pandas as pd

    summaries = []
    groups: Any = rows.groupby(["size", "parameters", "prompt", "signal"], sort=False)
    for (size, parameters, prompt, signal), group in groups:
        tables = [
            group.pivot(index="round", columns="trainer", values=value)
            for value in ("step_s", "step_cpu_s", "memory_gib")
        ]
        time_, cpu, memory = ((t, t[list(PEERS)].min(axis=1)) for t in tables)
        for name in TRAINERS:
            summaries.append(
                {
                    "model": size,
                    "weights": f"{parameters:,}",
                    "prompt": prompt,
                    "signal": signal,
                    "trainer": name,
                    "step, s": time_[0][name].median(),
                    "memory, GiB": memory[0][name].median(),
                    "CPU, s": cpu[0][name].median(),
                    "time/best peer": median_and_range(time_[0][name] / time_[1]),
                    "CPU/best peer": median_and_range(cpu[0][name] / cpu[1]),
                    "memory/best peer": median_and_range(memory[0][name] / memory[1]),
                }
            )
    return pd.DataFrame(summaries)


def plot(table: "pd.DataFrame", file: Path, caption: str) -> None:
    """Draw bars of time and memory of the last model with the last prompt."""
    from matplotlib.figure import Figure

    last = table.iloc[-1]
    shown: Any = table[(table["model"] == last["model"]) & (table["prompt"] == last["prompt"])]
    figure = Figure(figsize=(9, 4), layout="constrained")
    hatches = {1.0: "", 0.5: "///"}
    for axes, value in zip(figure.subplots(1, 2), ("step, s", "memory, GiB"), strict=True):
        shares = sorted(shown["signal"].unique(), reverse=True)
        for number, share in enumerate(shares):
            rows = shown[shown["signal"] == share]
            heights = [index + 0.4 * number for index in range(len(rows))]
            axes.barh(
                heights,
                rows[value],
                height=0.38,
                color=str(0.35 + 0.3 * number),
                hatch=hatches.get(share, "..."),
                edgecolor="white",
                label=f"{share:.0%} of the rows with signal",
            )
            for height, width in zip(heights, rows[value], strict=True):
                axes.text(width, height, f" {width:.2f}", va="center", fontsize=8)
        middle = 0.2 * (len(shares) - 1)
        axes.set_yticks([index + middle for index in range(len(TRAINERS))], TRAINERS)
        axes.invert_yaxis()
        axes.margins(x=0.2)
        axes.set_xlabel({"step, s": "optimizer step, s"}.get(value, "peak while training, GiB"))
    legend_below(figure)
    longer = f", questions longer by {last['prompt']} tokens" if last["prompt"] else ""
    title = f"{last['weights']} weights, 8 rollouts a step{longer}"
    figure.suptitle(f"{title}\n{caption}", fontsize=9)
    figure.savefig(file, dpi=120)


def main() -> None:
    """Measure and write, or one training of a child process."""
    parser = options(__doc__, prompt=[0], signal=[1.0, 0.5], steps=4, length=128, repeats=3)
    parser.add_argument("--size", nargs="+", choices=SHAPES, default=[*SHAPES])
    add_output_options(parser, "trainer_step")
    parser.add_argument("--one", choices=TRAINERS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.one:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(train(chosen.one, chosen, Path(folder))))
        return
    rows = rounds(chosen)
    caption = f"{machine(threads=chosen.threads)}, {chosen.repeats} rounds"
    table = summary(rows)
    write_table(chosen.out / chosen.name, rows, table, caption)
    plot(table, chosen.out / f"{chosen.name}.png", caption)


if __name__ == "__main__":
    main()
