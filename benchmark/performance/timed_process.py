"""Measures time and peak memory of one forward and backward of a contender, on CPU and CUDA.

python -m sdpo.benchmark.performance.timed_process NAME '[{"tokens": 1024, …}]' --threads 2

Prints a JSON line for each measurement. Memory is the peak beyond what was held before, less the
weight's gradient: of the process (Linux), or of the GPU's allocator. On CPU a process measures
once, and nothing is warm; on CUDA it measures all shapes one after the other, each after two runs
that do not count.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace

import torch
from torch import Tensor

from sdpo.benchmark.performance.contenders import (
    CONTENDERS,
    LossShape,
    LossTensors,
    random_tensors,
)
from sdpo.benchmark.performance.own_process import GIB, MemoryPeak
from sdpo.benchmark.performance.tables import Row

CUDA_WARM_UP = 2


def measurements(name: str, shapes: list[LossShape], repeats: int) -> Iterator[Row]:
    """Measure every shape in this process."""
    on_gpu = shapes[0].device == "cuda"
    small = replace(shapes[0], vocabulary=1000, hidden=16, tokens=8, active=1.0, topk=5)
    CONTENDERS[name](random_tensors(small))  # imports are not its time
    for shape in shapes:
        tensors = random_tensors(shape)
        try:
            for number in range(-CUDA_WARM_UP if on_gpu else 0, repeats):
                tensors.student.grad = tensors.weight.grad = None
                figures = (_on_cuda if on_gpu else _on_cpu)(name, tensors)
                if number >= 0:
                    yield {**asdict(shape), "round": number, **figures}
        except torch.OutOfMemoryError:
            print(f"{name} leaves out {shape}: not enough memory", file=sys.stderr, flush=True)
        del tensors


def _run(name: str, tensors: LossTensors) -> Tensor | None:
    """Run forward and backward; returns the loss, of the floor none."""
    loss = CONTENDERS[name](tensors)
    if loss is not None:
        loss.backward()
        loss = loss.detach()
    return loss


def _results(tensors: LossTensors, loss: Tensor | None) -> Row:
    """Take what must agree: the loss and the norms of the gradients."""
    row: Row = {} if loss is None else {"loss": loss.item()}
    for name, leaf in (("student", tensors.student), ("weight", tensors.weight)):
        if loss is not None and leaf.grad is not None:
            row[f"grad_{name}"] = leaf.grad.float().norm().item()
    return row


def _on_cpu(name: str, tensors: LossTensors) -> Row:
    """Run once; seconds, GiB and results."""
    peak = MemoryPeak()
    wall, cpu = time.perf_counter(), time.process_time()
    loss = _run(name, tensors)
    seconds = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    memory = peak.gib() - tensors.weight.nbytes / GIB
    return {**seconds, "memory_gib": memory, **_results(tensors, loss)}


def _on_cuda(name: str, tensors: LossTensors) -> Row:
    """Run once; seconds between two events of the stream, GiB of the allocator and results.

    Has not been run.
    """
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, cpu = torch.cuda.memory_allocated(), time.process_time()
    begin.record()
    loss = _run(name, tensors)
    end.record()
    torch.cuda.synchronize()
    memory = torch.cuda.max_memory_allocated() - before - tensors.weight.nbytes
    return {
        "wall_s": begin.elapsed_time(end) / 1000,
        "cpu_s": time.process_time() - cpu,
        "memory_gib": memory / GIB,
        **_results(tensors, loss),
    }


def main() -> None:
    """Print the measurements of one process."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("name", choices=CONTENDERS)
    parser.add_argument("shapes", type=json.loads, help="list of the fields of `LossShape`")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    shapes = [LossShape(**shape) for shape in chosen.shapes]
    for row in measurements(chosen.name, shapes, chosen.repeats):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
