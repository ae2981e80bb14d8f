"""Measures time and memory of the loss and its backward pass from hidden states: ours and others.

python -m sdpo.benchmark.performance.fused_loss --tokens 128 1024 --repeats 3
python -m sdpo.benchmark.performance.fused_loss --device cuda --dtype bfloat16 --tokens 1024 8192

Writes a table (CSV and Markdown) and a plot to reports/performance. On CPU each measurement is a
process of its own on identical tensors, the contenders taking turns, so that ratios within a round
share the machine's mood; on CUDA each contender is. Losses and norms of the gradients must agree.

A contender that would need more than `--memory` GiB is left out, by what it needed for fewer tokens
(CPU), or because the GPU's memory does not suffice (CUDA).
"""

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdpo.benchmark.performance.contenders import CONTENDERS, PEERS, LossShape
from sdpo.benchmark.performance.own_process import GIB, measure_in_process
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

_AGREEMENT = {"float32": 1e-4, "bfloat16": 0.1}
"""Largest relative difference of losses and norms; log-probs of the peers are bfloat16 as well."""
_SHAPE = [field.name for field in fields(LossShape) if field.name not in ("device", "dtype")]


def shapes(chosen: argparse.Namespace) -> Iterator[list[LossShape]]:
    """List all shapes, those of one vocabulary and K together, fewest tokens first."""
    for vocabulary, topk in product(chosen.vocabulary, chosen.topk):
        for active in sorted(chosen.active, reverse=True):
            yield [
                LossShape(
                    vocabulary, chosen.hidden, topk, tokens, active, chosen.device, chosen.dtype
                )
                for tokens in sorted(chosen.tokens)
            ]


def rounds(chosen: argparse.Namespace) -> "pd.DataFrame":
    """Make all measurements."""
    import pandas as pd

    rows: list[Row] = []
    for group in shapes(chosen):
        rows += (_rounds_on_cuda if chosen.device == "cuda" else _rounds_on_cpu)(group, chosen)
    check_agreement(rows, _AGREEMENT[chosen.dtype])
    return pd.DataFrame(rows)


def _measured(
    name: str, shapes: list[LossShape], chosen: argparse.Namespace, repeats: int = 1
) -> Iterator[Row]:
    """Measure one contender in a fresh process."""
    arguments = [name, json.dumps([asdict(shape) for shape in shapes])]
    arguments += ["--threads", str(chosen.threads), "--repeats", str(repeats)]
    module = "sdpo.benchmark.performance.timed_process"
    return measure_in_process(module, arguments, {"contender": name})


def _rounds_on_cuda(group: list[LossShape], chosen: argparse.Namespace) -> list[Row]:
    """Measure in a process for each contender."""
    processes = (_measured(name, group, chosen, chosen.repeats) for name in chosen.contenders)
    return [row for rows in processes for row in rows]


def _rounds_on_cpu(group: list[LossShape], chosen: argparse.Namespace) -> list[Row]:
    """Make each measurement in a process of its own, contenders in turn."""
    rows: list[Row] = []
    gib_per_token: dict[str, float] = {}
    for shape in group:
        weights = 2 * shape.vocabulary * shape.hidden * 4 / GIB
        affordable = [
            name
            for name in chosen.contenders
            if gib_per_token.get(name, 0) * shape.tokens + weights < chosen.memory
        ]
        for number, name in product(range(chosen.repeats), affordable):
            for row in _measured(name, [shape], chosen):
                rows.append({**row, "round": number})
                if name not in ("fused", "projections"):
                    gib_per_token[name] = float(row["memory_gib"]) / shape.tokens
    return rows


def check_agreement(rows: list[Row], tolerance: float) -> None:
    """Stop unless all contenders computed the same, wherever ours took part."""

    def shape_of(row: Row) -> tuple[float | str, ...]:
        return tuple(row[name] for name in _SHAPE)

    ours = {shape_of(row): row for row in rows if row["contender"] == "fused"}
    for row in rows:
        for key in ("loss", "grad_student", "grad_weight"):
            if key in row and shape_of(row) in ours:
                actual, expected = float(row[key]), float(ours[shape_of(row)][key])
                if not abs(actual - expected) <= tolerance * abs(expected):
                    raise SystemExit(f"{row['contender']}: {key} is {actual}, fused {expected}")


def summary(rows: "pd.DataFrame") -> "pd.DataFrame":
    """Summarize shapes and contenders: medians, and ratios to floor and best peer by round."""
    import pandas as pd

    summaries = []
    groups: Any = rows.groupby(_SHAPE, sort=True)
    for keys, group in groups:
        tables: dict[str, Any] = {
            value: group.pivot(index="round", columns="contender", values=value)
            for value in ("wall_s", "cpu_s", "memory_gib", "loss")
            if value in group
        }
        summaries += [
            dict(zip(_SHAPE, keys, strict=True)) | {"contender": name} | ratios(tables, name)
            for name in tables["wall_s"]
        ]
    return pd.DataFrame(summaries)


def ratios(tables: "Mapping[str, pd.DataFrame]", name: str) -> Row:
    """Take medians of one contender, and its ratios; those above 1 are slower or larger."""
    columns: Any = tables  # pandas' types do not know that a name gives one column
    row: Row = {value: columns[value][name].median() for value in ("wall_s", "cpu_s", "memory_gib")}
    table = columns["wall_s"]
    if "projections" in table:
        row["time/floor"] = median_and_range(table[name] / table["projections"])
    if peers := [peer for peer in PEERS if peer in table]:
        row["time/best peer"] = median_and_range(table[name] / table[peers].min(axis=1))
        memory = columns["memory_gib"]
        best = memory[peers].min(axis=1)
        row["memory/best peer"] = median_and_range(memory[name] / best, 4)
    if "loss" in columns and {"fused", name} <= set(columns["loss"]):
        difference = columns["loss"][name] / columns["loss"]["fused"] - 1
        row["loss/ours - 1"] = "" if difference.isna().all() else f"{difference.median():.1e}"
    return row


def plot(table: "pd.DataFrame", file: Path, caption: str) -> None:
    """Draw time and memory over tokens, for the largest vocabulary and K with all rows active."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullLocator

    largest: Any = table[table["active"] == table["active"].max()]
    for key in ("vocabulary", "topk"):
        largest = largest[largest[key] == largest[key].max()]
    figure = Figure(figsize=(9, 4), layout="constrained")
    labels = {"wall_s": "time, s", "memory_gib": "memory beyond weights and gradient, GiB"}
    for axes, (value, label) in zip(figure.subplots(1, 2), labels.items(), strict=True):
        for number, (name, rows) in enumerate(largest.groupby("contender")):
            floor = name == "projections"
            if not (floor and value == "memory_gib"):
                style = {"color": "grey", "linestyle": "--"} if floor else {}
                shown = f"{name} (floor)" if floor else str(name)
                marker = "osD^vP"[number]
                axes.plot(rows["tokens"], rows[value], marker=marker, label=shown, **style)
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


def main() -> None:
    """Measure and write."""
    numbers = {"vocabulary": [151936], "topk": [100], "tokens": [128, 1024], "active": [1.0]}
    parser = options(__doc__, **numbers, hidden=896, repeats=3)
    add_output_options(parser, None)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=_AGREEMENT, default="float32")
    parser.add_argument("--memory", type=float, default=6.0, help="GiB a process may take (CPU)")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=[*CONTENDERS])
    chosen = parser.parse_args()
    rows, file = rounds(chosen), chosen.out / (chosen.name or f"fused_loss_{chosen.device}")
    caption = machine(threads=chosen.threads, device=chosen.device, dtype=chosen.dtype)
    table = summary(rows)
    write_table(file, rows, table, caption)
    if len(chosen.tokens) > 1:
        plot(table, file.with_suffix(".png"), caption)


if __name__ == "__main__":
    main()
