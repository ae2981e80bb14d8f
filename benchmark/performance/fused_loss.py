"""Time and memory of the loss, forward and backward, from hidden states: ours and others.

python -m sdpo.benchmark.performance.fused_loss --tokens 128 1024 --repeats 3
python -m sdpo.benchmark.performance.fused_loss --device cuda --dtype bfloat16 --tokens 1024 8192

Writes a table (CSV and Markdown) and a plot to reports/performance. On CPU each measurement is a
process of its own on identical tensors, the contenders taking turns, so that ratios within a round
share the machine's mood; on CUDA each contender is. Losses and norms of the gradients must agree.

A contender that would need more than `--memory` GiB is left out, by what it needed for fewer tokens
(CPU), or because the GPU's memory does not suffice (CUDA).
"""

import argparse
import os
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpo.benchmark.performance.contenders import CONTENDERS
from sdpo.benchmark.performance.tables import OUT, legend_below, machine, spread, write
from sdpo.benchmark.performance.timed_process import GIB, in_own_process

if TYPE_CHECKING:
    import pandas as pd

PEERS = ("sdpo-rl", "trl")
AGREEMENT = {"float32": 1e-4, "bfloat16": 0.1}
"""Largest relative difference of losses and norms; log-probs of the peers are bfloat16 as well."""
SHAPE = ["vocabulary", "hidden", "topk", "tokens", "active"]
Rows = list[dict[str, Any]]


def shapes(chosen: argparse.Namespace) -> Iterator[Rows]:
    """All shapes, those of one vocabulary and K together, fewest tokens first."""
    common = {"hidden": chosen.hidden, "device": chosen.device, "dtype": chosen.dtype}
    for vocabulary, topk in product(chosen.vocabulary, chosen.topk):
        for active in sorted(chosen.active, reverse=True):
            yield [
                {"vocabulary": vocabulary, "topk": topk, "tokens": tokens, "active": active}
                | common
                for tokens in sorted(chosen.tokens)
            ]


def rounds(chosen: argparse.Namespace) -> "pd.DataFrame":
    """All measurements."""
    import pandas as pd

    rows: Rows = []
    for group in shapes(chosen):
        rows += on_cuda(group, chosen) if chosen.device == "cuda" else on_cpu(group, chosen)
    check_agreement(rows, AGREEMENT[chosen.dtype])
    return pd.DataFrame(rows)


def on_cuda(group: Rows, chosen: argparse.Namespace) -> Rows:
    """A process for each contender."""
    rows: Rows = []
    for name in chosen.contenders:
        rows += in_own_process(name, group, threads=chosen.threads, repeats=chosen.repeats)
    return rows


def on_cpu(group: Rows, chosen: argparse.Namespace) -> Rows:
    """A process for each measurement, contenders in turn."""
    rows: Rows = []
    needs: dict[str, float] = {}
    for shape in group:
        weights = 2 * shape["vocabulary"] * shape["hidden"] * 4 / GIB
        fit = [
            name
            for name in chosen.contenders
            if needs.get(name, 0) * shape["tokens"] + weights < chosen.memory
        ]
        found = [
            {**row, "round": number}
            for number in range(chosen.repeats)
            for name in fit
            for row in in_own_process(name, [shape], threads=chosen.threads)
        ]
        for row in found:
            if row["contender"] not in ("fused", "projections"):
                needs[row["contender"]] = row["memory_gib"] / shape["tokens"]
        rows += found
    return rows


def check_agreement(rows: Rows, tolerance: float) -> None:
    """All contenders computed the same, wherever ours took part."""
    ours = {key_of(row): row for row in rows if row["contender"] == "fused"}
    for row in rows:
        first = ours.get(key_of(row), row)
        for key in ("loss", "grad_student", "grad_weight"):
            if key in row and not abs(row[key] - first[key]) <= tolerance * abs(first[key]):
                raise SystemExit(f"{row['contender']}: {key} is {row[key]}, fused {first[key]}")


def key_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """What tells shapes apart."""
    return tuple(row[name] for name in SHAPE)


def summary(rows: "pd.DataFrame") -> "pd.DataFrame":
    """Per shape and contender: medians, and ratios to floor and best peer within each round."""
    import pandas as pd

    found = []
    groups: Any = rows.groupby(SHAPE, sort=True)
    for keys, part in groups:
        tables: dict[str, Any] = {
            value: part.pivot(index="round", columns="contender", values=value)
            for value in ("wall_s", "cpu_s", "memory_gib", "loss")
            if value in part
        }
        found += [
            dict(zip(SHAPE, keys, strict=True)) | {"contender": name} | ratios(tables, name)
            for name in tables["wall_s"]
        ]
    return pd.DataFrame(found)


def ratios(tables: dict[str, Any], name: str) -> dict[str, Any]:
    """Medians of one contender, and its ratios; those above 1 are slower or larger."""
    row = {value: tables[value][name].median() for value in ("wall_s", "cpu_s", "memory_gib")}
    table = tables["wall_s"]
    if "projections" in table:
        row["time/floor"] = spread(table[name] / table["projections"])
    if peers := [peer for peer in PEERS if peer in table]:
        row["time/best peer"] = spread(table[name] / table[peers].min(axis=1))
        best = tables["memory_gib"][peers].min(axis=1)
        row["memory/best peer"] = spread(tables["memory_gib"][name] / best, 4)
    if "loss" in tables and {"fused", name} <= set(tables["loss"]):
        difference = tables["loss"][name] / tables["loss"]["fused"] - 1
        row["loss/ours - 1"] = "" if difference.isna().all() else f"{difference.median():.1e}"
    return row


def plot(table: "pd.DataFrame", file: Path, caption: str) -> None:
    """Time and memory over tokens, for the largest vocabulary and K with all rows active."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    largest: Any = table[table["active"] == table["active"].max()]
    for key in ("vocabulary", "topk"):
        largest = largest[largest[key] == largest[key].max()]
    figure = Figure(figsize=(9, 4), layout="constrained")
    labels = {"wall_s": "time, s", "memory_gib": "memory beyond weights and gradient, GiB"}
    for axes, (value, label) in zip(figure.subplots(1, 2), labels.items(), strict=True):
        for number, (name, part) in enumerate(largest.groupby("contender")):
            floor = name == "projections"
            if not (floor and value == "memory_gib"):
                style = {"color": "grey", "linestyle": "--"} if floor else {}
                shown = f"{name} (floor)" if floor else str(name)
                marker = "osD^vP"[number]
                axes.plot(part["tokens"], part[value], marker=marker, label=shown, **style)
        axes.set(xscale="log", yscale="log", xlabel="tokens", title=label)
        tokens = sorted(set(largest["tokens"]))
        axes.set_xticks(tokens, [f"{count:,}" for count in tokens])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    legend_below(figure)
    shape = largest.iloc[0]
    title = f"vocabulary {shape['vocabulary']:,}, hidden {shape['hidden']}, K {shape['topk']}"
    figure.suptitle(f"{title}\n{caption}", fontsize=9)
    figure.savefig(file, dpi=120)


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--vocabulary", nargs="+", type=int, default=[151936])
    parser.add_argument("--hidden", type=int, default=896)
    parser.add_argument("--topk", nargs="+", type=int, default=[100])
    parser.add_argument("--tokens", nargs="+", type=int, default=[128, 1024])
    parser.add_argument("--active", nargs="+", type=float, default=[1.0], help="share of rows")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=AGREEMENT, default="float32")
    parser.add_argument("--memory", type=float, default=6.0, help="GiB a process may take (CPU)")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=[*CONTENDERS])
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the results")
    parser.add_argument("--name", help="of the results' files")
    return parser


def main() -> None:
    """Measure and write."""
    chosen = arguments().parse_args()
    rows, file = rounds(chosen), chosen.out / (chosen.name or f"fused_loss_{chosen.device}")
    caption = machine(threads=chosen.threads, device=chosen.device, dtype=chosen.dtype)
    table = summary(rows)
    write(file, rows, table, caption)
    if len(chosen.tokens) > 1:
        plot(table, file.with_suffix(".png"), caption)


if __name__ == "__main__":
    main()
