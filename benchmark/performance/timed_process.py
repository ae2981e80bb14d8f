"""Time and peak memory of one forward and backward of a contender, on CPU and CUDA.

python -m sdpo.benchmark.performance.timed_process NAME '[{"tokens": 1024, …}]' --threads 2

Prints a JSON line for each measurement. Memory is the peak beyond what was held before, less the
weight's gradient: of the process (Linux), or of the GPU's allocator. On CPU a process measures
once, and nothing is warm; on CUDA it measures all shapes one after the other, each after two runs
that do not count.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdpo.benchmark.performance.contenders import CONTENDERS, Inputs, inputs

CUDA_WARM_UP = 2
GIB = 2**30


def in_own_process(
    name: str, shapes: list[dict[str, Any]], *, threads: int, repeats: int = 1
) -> Iterator[dict[str, Any]]:
    """Measurements of a fresh interpreter, with the shape that each is of."""
    command = [sys.executable, "-W", "ignore", "-m", __name__, name, json.dumps(shapes)]
    command += ["--threads", str(threads), "--repeats", str(repeats)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    for line in done.stdout.splitlines():
        if line.startswith("{"):
            row = {"contender": name, **json.loads(line), "load": os.getloadavg()[0]}
            print(shown(row), file=sys.stderr, flush=True)
            yield row


def shown(row: dict[str, Any]) -> str:
    """One measurement for the terminal."""
    shape = f"V {row['vocabulary']} K {row['topk']} tokens {row['tokens']} active {row['active']}"
    time_ = f"wall {row['wall_s']:.4g} s, cpu {row['cpu_s']:.4g} s"
    return f"{row['contender']:12s} {shape}: {time_}, {row['memory_gib'] * 1024:.0f} MiB"


def measurements(name: str, shapes: list[dict[str, Any]], repeats: int) -> Iterator[dict[str, Any]]:
    """Every shape's runs in this process."""
    device, dtype = shapes[0]["device"], shapes[0]["dtype"]
    small = {"vocabulary": 1000, "hidden": 16, "tokens": 8, "active": 1.0, "topk": 5}
    CONTENDERS[name](inputs(**small, device=device, dtype=dtype))  # imports are not its time
    for shape in shapes:
        on = inputs(**shape)
        try:
            for number in range(-CUDA_WARM_UP if device == "cuda" else 0, repeats):
                on["student"].grad = on["weight"].grad = None
                found = (on_cuda if device == "cuda" else on_cpu)(name, on)
                if number >= 0:
                    yield {**shape, "round": number, **found}
        except torch.OutOfMemoryError:
            print(f"{name} leaves out {shape}: not enough memory", file=sys.stderr, flush=True)
        del on


def run(name: str, on: Inputs) -> Tensor | None:
    """Forward and backward; the loss, none of the floor."""
    loss = CONTENDERS[name](on)
    if loss is not None:
        loss.backward()
        loss = loss.detach()
    return loss


def results(on: Inputs, loss: Tensor | None) -> dict[str, float]:
    """What must agree: the loss and the norms of the gradients."""
    if loss is None:
        return {}
    norms = {f"grad_{key}": on[key].grad.float().norm().item() for key in ("student", "weight")}
    return {"loss": loss.item(), **norms}


def on_cpu(name: str, on: Inputs) -> dict[str, float]:
    """One run: seconds, GiB and results."""
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    wall, cpu = time.perf_counter(), time.process_time()
    loss = run(name, on)
    seconds = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    memory = status("VmHWM") - before - on["weight"].nbytes / GIB
    return {**seconds, "memory_gib": memory, **results(on, loss)}


def status(field: str) -> float:
    """A field of the process's status in GiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 2**20


def on_cuda(name: str, on: Inputs) -> dict[str, float]:
    """One run: seconds between two events of the stream, GiB of the allocator and results."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, cpu = torch.cuda.memory_allocated(), time.process_time()
    begin.record()
    loss = run(name, on)
    end.record()
    torch.cuda.synchronize()
    memory = torch.cuda.max_memory_allocated() - before - on["weight"].nbytes
    return {
        "wall_s": begin.elapsed_time(end) / 1000,
        "cpu_s": time.process_time() - cpu,
        "memory_gib": memory / GIB,
        **results(on, loss),
    }


def main() -> None:
    """The measurements of one process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("name", choices=CONTENDERS)
    parser.add_argument("shapes", type=json.loads, help="list of arguments of `inputs`")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    for row in measurements(chosen.name, chosen.shapes, chosen.repeats):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
