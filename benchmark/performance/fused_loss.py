"""Time and memory of the loss, forward and backward, from hidden states: ours and others.

python benchmark/performance/fused_loss.py --tokens 128 1024 --repeats 3

Writes a table (CSV and Markdown) and a plot to reports/performance. Each measurement is a process
of its own on identical tensors, the contenders taking turns, so that ratios within a round share
the machine's mood. `projections` is the floor: the four products that every method needs (student
and teacher forward, gradients of hidden states and weight), with nothing between them. Losses and
norms of the gradients must agree.

Memory is the process's peak beyond what it held before, less the weight's gradient (Linux). A
contender that would need more than `--memory` GiB is left out, by what it needed for fewer tokens.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdpo.config import SDPOConfig

if TYPE_CHECKING:
    import pandas as pd

OUT = Path(__file__).parents[2] / "reports" / "performance"
TEMPERATURE, ALPHA = 1.0, 0.5
Inputs = dict[str, Any]


def inputs(vocabulary: int, hidden: int, tokens: int, active: float, topk: int) -> Inputs:
    """Random hidden states of student and teacher under one head; `active` of 8 rows count."""
    random = torch.Generator().manual_seed(0)
    rows = min(8, tokens)
    shape = (rows, tokens // rows, hidden)
    student = torch.randn(shape, generator=random)
    weight = torch.empty(vocabulary, hidden).normal_(0, 0.1, generator=random)
    return {
        "student": student.requires_grad_(),
        "teacher": student.detach() + 0.3 * torch.randn(shape, generator=random),
        "weight": weight.requires_grad_(),
        "responses": torch.randint(0, vocabulary, shape[:2], generator=random),
        "response_mask": torch.ones(shape[:2]),
        "self_distillation_mask": (torch.arange(rows) < round(rows * active)).float(),
        "topk": topk,
    }


def settings(on: Inputs) -> dict[str, Any]:
    """Masks and configuration as our functions take them."""
    config = SDPOConfig(
        alpha=ALPHA, distillation_topk=on["topk"], is_clip=None, temperature=TEMPERATURE
    )
    names = ("responses", "response_mask", "self_distillation_mask")
    return {**{name: on[name] for name in names}, "config": config}


def logits(on: Inputs) -> tuple[Tensor, Tensor]:
    """All logits of both sides, the teacher's without gradient."""
    with torch.no_grad():
        teacher = on["teacher"] @ on["weight"].T
    return on["student"] @ on["weight"].T, teacher


def projections(on: Inputs) -> None:
    """The four products alone, a thousand tokens at a time."""
    weight = on["weight"].detach()
    student, teacher = on["student"].detach().flatten(0, 1), on["teacher"].flatten(0, 1)
    by_hidden, by_weight = torch.empty_like(student), torch.zeros_like(weight)
    for start in range(0, len(student), 1024):
        rows = slice(start, start + 1024)
        _ = teacher[rows] @ weight.T
        found = student[rows] @ weight.T
        torch.mm(found, weight, out=by_hidden[rows])
        by_weight.addmm_(found.T, student[rows])


def fused(on: Inputs) -> Tensor:
    """`sdpo.fused`."""
    from sdpo.fused import fused_self_distillation_loss
    from sdpo.heads import Head, Projection

    head = Head(on["weight"])
    student, teacher = Projection(on["student"], head), Projection(on["teacher"], head)
    return fused_self_distillation_loss(student, teacher, **settings(on))


def unfused(on: Inputs) -> Tensor:
    """`sdpo.loss`."""
    from sdpo.loss import self_distillation_loss

    return self_distillation_loss(*logits(on), **settings(on))


def transcription(on: Inputs) -> Tensor:
    """The transcription of the reference."""
    from sdpo.reference.loss import loss_from_logits

    return loss_from_logits(
        *logits(on),
        on["responses"],
        on["response_mask"],
        temperature=TEMPERATURE,
        distillation_topk=on["topk"],
        alpha=ALPHA,
        distillation_add_tail=True,
        is_clip=None,
        self_distillation_mask=on["self_distillation_mask"],
    )


def sdpo_rl(on: Inputs) -> Tensor:
    """`sdpo-rl`, in the order of its trainer; it knows no temperature."""
    from sdpo_rl.distillation import (  # pyright: ignore[reportMissingImports]
        compute_self_distillation_loss,
    )

    response = on["responses"].unsqueeze(-1)
    student_logits = on["student"] @ on["weight"].T  # its trainer, too, holds both sides' logits
    student = student_logits.log_softmax(-1)
    student_topk, indices = student.topk(on["topk"], dim=-1)
    with torch.no_grad():
        teacher_logits = on["teacher"] @ on["weight"].T
        teacher = teacher_logits.log_softmax(-1)
        teacher_topk = teacher.gather(-1, indices)
    loss, _ = compute_self_distillation_loss(
        student_topk_log_probs=student_topk,
        teacher_topk_log_probs=teacher_topk,
        student_log_probs=student.gather(-1, response).squeeze(-1),
        teacher_log_probs=teacher.gather(-1, response).squeeze(-1),
        response_mask=on["response_mask"],
        self_distillation_mask=on["self_distillation_mask"],
        alpha=ALPHA,
        is_clip=None,
    )
    return loss


def trl(on: Inputs) -> Tensor:
    """TRL's experimental SDPO; as its trainer, it divides the logits by the temperature."""
    from trl.experimental.sdpo.loss_utils import compute_topk_self_distillation_loss

    student, teacher = logits(on)
    per_token = compute_topk_self_distillation_loss(
        student / TEMPERATURE,
        teacher / TEMPERATURE,
        distillation_topk=on["topk"],
        distillation_alpha=ALPHA,
        distillation_add_tail=True,
    )
    mask = on["response_mask"] * on["self_distillation_mask"].unsqueeze(-1)
    return (per_token * mask).sum() / mask.sum()


CONTENDERS: dict[str, Callable[[Inputs], Tensor | None]] = {
    "projections": projections,
    "fused": fused,
    "sdpo.loss": unfused,
    "reference": transcription,
    "sdpo-rl": sdpo_rl,
    "trl": trl,
}
PEERS = ("sdpo-rl", "trl")


def status(field: str) -> float:
    """A field of the process's status in GiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 2**20


def measure(name: str, on: Inputs) -> dict[str, float]:
    """One forward and backward in this process: seconds, GiB, loss, norms of the gradients."""
    CONTENDERS[name](inputs(1000, 16, 8, 1.0, 5))  # imports are not the contender's time
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    wall, cpu = time.perf_counter(), time.process_time()
    loss = CONTENDERS[name](on)
    if loss is not None:
        loss.backward()
    found = {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "memory_gib": status("VmHWM") - before - on["weight"].nbytes / 2**30,
    }
    if loss is not None:
        norms = {f"grad_{key}": on[key].grad.norm().item() for key in ("student", "weight")}
        found |= {"loss": loss.item(), **norms}
    return found


def in_own_process(name: str, shape: dict[str, Any], threads: int) -> dict[str, Any]:
    """One measurement in a fresh interpreter."""
    command = [sys.executable, "-W", "ignore", __file__, "--one", name, "--threads", str(threads)]
    for key, value in shape.items():
        command += [f"--{key}", str(value)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    load = os.getloadavg()[0]
    row = {"contender": name, **shape, **json.loads(done.stdout.splitlines()[-1]), "load": load}
    print(f"{name:12s} {shape} wall {row['wall_s']:.2f} s, cpu {row['cpu_s']:.2f} s, "
          f"{row['memory_gib'] * 1024:.0f} MiB, load {load:.1f}", flush=True)  # fmt: skip
    return row


def check_agreement(rows: list[dict[str, Any]]) -> None:
    """All contenders computed the same."""
    first = next(row for row in rows if row["contender"] == "fused")
    for row in rows:
        for key in ("loss", "grad_student", "grad_weight"):
            if key in row and abs(row[key] - first[key]) > 1e-4 * abs(first[key]):
                raise SystemExit(f"{row['contender']}: {key} is {row[key]}, fused {first[key]}")


def rounds(chosen: argparse.Namespace) -> "pd.DataFrame":
    """All measurements, contenders in turn."""
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for vocabulary in chosen.vocabulary:
        for topk in chosen.topk:
            needs: dict[str, float] = {}
            for active in chosen.active:
                for tokens in sorted(chosen.tokens):
                    shape = {"vocabulary": vocabulary, "hidden": chosen.hidden, "topk": topk}
                    shape |= {"tokens": tokens, "active": active}
                    weights = 2 * vocabulary * chosen.hidden * 4 / 2**30
                    fit = [
                        name
                        for name in chosen.contenders
                        if needs.get(name, 0) * tokens + weights < chosen.memory
                    ]
                    for number in range(chosen.repeats):
                        found = [in_own_process(name, shape, chosen.threads) for name in fit]
                        check_agreement(found)
                        rows += [{**row, "round": number} for row in found]
                        if active == 1:
                            for row in found:
                                if row["contender"] not in ("fused", "projections"):
                                    needs[row["contender"]] = row["memory_gib"] / tokens
    return pd.DataFrame(rows)


def summary(rows: "pd.DataFrame") -> "pd.DataFrame":
    """Per shape and contender: medians, and ratios to floor and best peer within each round."""
    import pandas as pd

    shape = ["vocabulary", "hidden", "topk", "tokens", "active"]
    found = []
    groups: Any = rows.groupby(shape, sort=True)
    for keys, part in groups:
        tables: dict[str, Any] = {
            value: part.pivot(index="round", columns="contender", values=value)
            for value in ("wall_s", "cpu_s", "memory_gib")
        }
        for name in tables["wall_s"]:
            row = dict(zip(shape, keys, strict=True)) | {"contender": name}
            row |= {value: table[name].median() for value, table in tables.items()}
            for value in ("wall_s", "cpu_s"):
                table = tables[value]
                if "projections" in table:
                    row[f"{value}/floor"] = spread(table[name] / table["projections"])
                if peers := [peer for peer in PEERS if peer in table]:
                    row[f"{value}/peer"] = spread(table[name] / table[peers].min(axis=1))
            if peers := [peer for peer in PEERS if peer in tables["memory_gib"]]:
                best = tables["memory_gib"][peers].min(axis=1)
                row["memory/peer"] = spread(tables["memory_gib"][name] / best, 4)
            found.append(row)
    return pd.DataFrame(found)


def spread(ratios: Any, digits: int = 2) -> str:
    """Median, smallest and largest."""
    middle, low, high = ratios.median(), ratios.min(), ratios.max()
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def write(folder: Path, rows: "pd.DataFrame", machine: str) -> None:
    """The measurements, their summary, and the plot of the shape measured most."""
    folder.mkdir(parents=True, exist_ok=True)
    rows.to_csv(folder / "fused_loss.csv", index=False)
    table = summary(rows)
    loads = f"load average {rows['load'].min():.1f} to {rows['load'].max():.1f}"
    lines = [f"{machine}; {loads}; median (smallest to largest) of {rows['round'].nunique()}", ""]
    lines += ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    for _, row in table.iterrows():
        cells = [f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row]
        lines.append("| " + " | ".join(cells) + " |")
    text = "\n".join(lines) + "\n"
    (folder / "fused_loss.md").write_text(text, encoding="utf-8")
    print(text)
    plot(table, folder / "fused_loss.png", f"{machine}; {loads}")


def plot(table: "pd.DataFrame", file: Path, caption: str) -> None:
    """CPU time and memory over tokens, for the largest vocabulary and K with all rows active."""
    from matplotlib.figure import Figure

    largest: Any = table[table["active"] == table["active"].max()]
    for key in ("vocabulary", "topk"):
        largest = largest[largest[key] == largest[key].max()]
    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, value, label in zip(
        figure.subplots(1, 2),
        ("cpu_s", "memory_gib"),
        ("CPU time, s", "memory beyond weights and gradient, GiB"),
        strict=True,
    ):
        for name, part in largest.groupby("contender"):
            style = {"color": "grey", "linestyle": "--"} if name == "projections" else {}
            if name != "projections" or value == "cpu_s":
                shown = f"{name} (floor)" if style else str(name)
                axes.plot(part["tokens"], part[value], marker="o", label=shown, **style)
        axes.set(xscale="log", yscale="log", xlabel="tokens", title=label)
        axes.legend(fontsize=8)
    shape = largest.iloc[0]
    title = f"vocabulary {shape['vocabulary']:,}, hidden {shape['hidden']}, K {shape['topk']}"
    figure.suptitle(f"{title}\n{caption}", fontsize=9)
    figure.savefig(file, dpi=120)


def main() -> None:
    """Measure and write, or one measurement of a child process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--vocabulary", nargs="+", type=int, default=[151936])
    parser.add_argument("--hidden", type=int, default=896)
    parser.add_argument("--topk", nargs="+", type=int, default=[100])
    parser.add_argument("--tokens", nargs="+", type=int, default=[128, 1024])
    parser.add_argument("--active", nargs="+", type=float, default=[1.0], help="share of rows")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--memory", type=float, default=6.0, help="GiB a process may take")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=[*CONTENDERS])
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the results")
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.one:
        shape = (chosen.vocabulary[0], chosen.hidden, chosen.tokens[0], chosen.active[0])
        print(json.dumps(measure(chosen.one, inputs(*shape, chosen.topk[0]))))
        return
    rows = rounds(chosen)
    machine = f"{platform.processor() or platform.machine()}, {chosen.threads} threads"
    write(chosen.out, rows, f"torch {torch.__version__}, {machine}, float32")


if __name__ == "__main__":
    main()
