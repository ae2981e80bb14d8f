"""Time and memory of an optimizer step: our trainer, by logits and fused, TRL's and sdpo-rl's.

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
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from sdpo.benchmark.performance.tables import OUT, legend_below, machine, spread, write
from sdpo.benchmark.performance.timed_process import status

if TYPE_CHECKING:
    import pandas as pd

    from sdpo.parity.trainers.scenarios.scenario import Scenario

SIZES: Mapping[str, dict[str, int]] = {
    "tiny": {"vocab_size": 32_000, "hidden_size": 128, "num_hidden_layers": 2},
    "deep": {"vocab_size": 32_000, "hidden_size": 512, "num_hidden_layers": 8},
    "small": {"vocab_size": 151_936, "hidden_size": 256, "num_hidden_layers": 4},
}
GROUPS, GROUP_SIZE, ROWS_AT_ONCE = 2, 4, 4
OURS: Mapping[str, Mapping[str, Any]] = {
    "ours, logits": {"loss_implementation": "logits"},
    "ours, fused": {"loss_implementation": "fused"},
    "ours, fused, shared prompts": {"loss_implementation": "fused", "share_prompts": "both"},
}
PEERS = ("trl", "sdpo-rl")
TRAINERS = (*OURS, *PEERS)


def scenario(chosen: argparse.Namespace, settings: Mapping[str, Any]) -> "Scenario":
    """Generations of two groups of four rollouts, learnt from in two micro-batches each."""
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


def write_model(size: str, folder: Path) -> int:
    """A random model where the adapters look for one; its number of weights."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape: dict[str, Any] = SIZES[size]
    config = Qwen2Config(
        **shape,
        intermediate_size=4 * shape["hidden_size"],
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
    )
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).float()
    model.save_pretrained(folder / "model")
    return sum(parameter.numel() for parameter in model.parameters())


def train(name: str, chosen: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One training in this process: seconds of each step, and GiB."""
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
    parameters, clock = write_model(chosen.size[0], folder), Clock()
    with quiet():
        parts, player = make_parts(adapter, script, folder)
        trainer, _ = adapter.build(parts)
        trainer.model.generate = player.generate
        trainer.add_callback(clock)
        before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        trainer.train()
    return {
        "parameters": parameters,
        "step_s": median(clock.wall[1:]),
        "step_cpu_s": median(clock.cpu[1:]),
        "memory_gib": status("VmHWM") - before,
    }


def in_own_process(name: str, row: dict[str, Any], chosen: argparse.Namespace) -> Any:
    """One training in a fresh interpreter; `row` has its size, prompt and signal."""
    settings = row | {"steps": chosen.steps, "length": chosen.length, "threads": chosen.threads}
    command = [sys.executable, "-W", "ignore", "-m", __spec__.name, "--one", name]
    command += [text for key, value in settings.items() for text in (f"--{key}", str(value))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    row = {**row, "trainer": name}
    row |= {**json.loads(done.stdout.splitlines()[-1]), "load": os.getloadavg()[0]}
    print(row, file=sys.stderr, flush=True)
    return row


def rounds(chosen: argparse.Namespace) -> "pd.DataFrame":
    """All trainings, trainers in turn."""
    import pandas as pd

    return pd.DataFrame(
        {
            **in_own_process(name, {"size": size, "prompt": prompt, "signal": signal}, chosen),
            "round": number,
        }
        for size in chosen.size
        for prompt in chosen.prompt
        for signal in chosen.signal
        for number in range(chosen.repeats)
        for name in TRAINERS
    )


def summary(rows: "pd.DataFrame") -> "pd.DataFrame":
    """Per model, share and trainer: medians, and ratios to the best peer within each round."""
    import pandas as pd

    found = []
    groups: Any = rows.groupby(["size", "parameters", "prompt", "signal"], sort=False)
    for (size, parameters, prompt, signal), part in groups:
        tables = [
            part.pivot(index="round", columns="trainer", values=value)
            for value in ("step_s", "step_cpu_s", "memory_gib")
        ]
        time_, cpu, memory = ((t, t[list(PEERS)].min(axis=1)) for t in tables)
        for name in TRAINERS:
            found.append(
                {
                    "model": size,
                    "weights": f"{parameters:,}",
                    "prompt": prompt,
                    "signal": signal,
                    "trainer": name,
                    "step, s": time_[0][name].median(),
                    "memory, GiB": memory[0][name].median(),
                    "CPU, s": cpu[0][name].median(),
                    "time/best peer": spread(time_[0][name] / time_[1]),
                    "CPU/best peer": spread(cpu[0][name] / cpu[1]),
                    "memory/best peer": spread(memory[0][name] / memory[1]),
                }
            )
    return pd.DataFrame(found)


def plot(table: "pd.DataFrame", file: Path, caption: str) -> None:
    """Bars of time and memory of the last model with the last prompt."""
    from matplotlib.figure import Figure

    last = table.iloc[-1]
    shown: Any = table[(table["model"] == last["model"]) & (table["prompt"] == last["prompt"])]
    figure = Figure(figsize=(9, 4), layout="constrained")
    hatches = {1.0: "", 0.5: "///"}
    for axes, value in zip(figure.subplots(1, 2), ("step, s", "memory, GiB"), strict=True):
        shares = sorted(shown["signal"].unique(), reverse=True)
        for number, share in enumerate(shares):
            part = shown[shown["signal"] == share]
            places = [index + 0.4 * number for index in range(len(part))]
            axes.barh(
                places,
                part[value],
                height=0.38,
                color=str(0.35 + 0.3 * number),
                hatch=hatches.get(share, "..."),
                edgecolor="white",
                label=f"{share:.0%} of the rows with signal",
            )
            for place, number_ in zip(places, part[value], strict=True):
                axes.text(number_, place, f" {number_:.2f}", va="center", fontsize=8)
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
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--size", nargs="+", choices=SIZES, default=[*SIZES])
    parser.add_argument(
        "--prompt", nargs="+", type=int, default=[0], help="more tokens in the question, about"
    )
    parser.add_argument("--signal", nargs="+", type=float, default=[1.0, 0.5])
    parser.add_argument("--steps", type=int, default=4, help="the first is not measured")
    parser.add_argument("--length", type=int, default=128, help="tokens of a completion, about")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the results")
    parser.add_argument("--name", default="trainer_step", help="of the results' files")
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
    write(chosen.out / chosen.name, rows, table, caption)
    plot(table, chosen.out / f"{chosen.name}.png", caption)


if __name__ == "__main__":
    main()
