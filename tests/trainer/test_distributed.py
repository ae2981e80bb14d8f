"""Two processes over gloo against one: same update, demonstrations across ranks, no hang.

Budget kind: a few times what rounding makes of the way that the weights went.
"""

import csv
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sdpo.parity.cases import tensor_distances
from tests.helpers.measured import alike
from tests.helpers.trainers import distributed_run, tiny_trainer
from tests.helpers.trainers.distributed_run import model

SCRIPT = Path(distributed_run.__file__)
LIMIT = 150


def launch(out: Path, processes: int, *options: str) -> list[dict[str, torch.Tensor]]:
    out.mkdir()
    command = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    # Without MPI the several-device launcher starts the processes; they find no GPU and use gloo.
    command += ["--num_processes", str(processes), *(["--multi_gpu"] if processes > 1 else [])]
    done = accelerate(*command, "--main_process_port", free_port(), str(SCRIPT), str(out), *options)
    assert done.returncode == 0, done.stderr[-4000:]
    return [load_file(out / f"rank{rank}.safetensors") for rank in range(processes)]


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def accelerate(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`accelerate launch` on CPUs."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    paths = [str(SCRIPT.parents[3]), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def start_of(side: str) -> dict[str, torch.Tensor]:
    """The initial weights under the names of a side."""
    return {f"{side}.{name}": p for name, p in tiny_trainer.weights(model()).items()}


def of_side(run: dict[str, torch.Tensor], side: str) -> dict[str, torch.Tensor]:
    return {name: run[name] for name in start_of(side)}


def near(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], side: str) -> bool:
    """Whether two runs are the same within what rounding makes of the way of the other one."""
    sides = of_side(one, side), of_side(other, side)
    return alike(*sides, float(other["rounding"]), start_of(side))


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], side: str) -> float:
    """How far two runs are apart, relative to the way from the initial weights."""
    return tensor_distances.distance(of_side(one, side), of_side(other, side), start_of(side))


@pytest.mark.slow
def test_two_processes_make_the_update_of_one(tmp_path):
    (single,) = launch(tmp_path / "one", 1)
    ranks = launch(tmp_path / "two", 2)
    for side in ("student", "teacher"):
        assert near(ranks[0], single, side)
        assert distance(ranks[0], single, side) < 1e-5
        assert distance(ranks[1], ranks[0], side) == 0
    # Both successes are rows of the second process: the first one learns from them all the same.
    assert ranks[0]["signal"].tolist() == [4, 4, 4]
    assert ranks[1]["signal"].tolist() == [4, 4, 4]
    assert single["signal"].tolist() == [8, 8, 8]
    assert [run["moves"].item() for run in (single, *ranks)] == [3, 3, 3]


@pytest.mark.slow
def test_the_fused_loss_on_two_processes_makes_the_update_of_one(tmp_path):
    """Also where the first process has no row with a teacher signal."""
    options = ("--group", "4")
    (single,) = launch(tmp_path / "one", 1, *options)
    ranks = launch(tmp_path / "two", 2, *options, "--loss", "fused")
    for side in ("student", "teacher"):
        assert near(ranks[0], single, side)
        assert distance(ranks[1], ranks[0], side) == 0


@pytest.mark.slow
def test_shared_prompts_on_two_processes_make_the_update_of_one(tmp_path):
    """Four rows of one prompt in a micro-batch here, two there."""
    (single,) = launch(tmp_path / "one", 1)
    ranks = launch(tmp_path / "two", 2, "--share", "both")
    for side in ("student", "teacher"):
        assert near(ranks[0], single, side)
        assert distance(ranks[1], ranks[0], side) == 0


FSDP2 = """
distributed_type: FSDP
fsdp_config:
  fsdp_version: 2
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_transformer_layer_cls_to_wrap: Qwen2DecoderLayer
  fsdp_reshard_after_forward: true
  fsdp_state_dict_type: SHARDED_STATE_DICT
mixed_precision: 'no'
num_machines: 1
num_processes: 2
"""


@pytest.mark.slow
def test_fsdp2_is_refused_on_every_process_before_anything_is_done(tmp_path):
    (tmp_path / "fsdp2.yaml").write_text(FSDP2)
    options = ["--config_file", str(tmp_path / "fsdp2.yaml"), "--main_process_port", free_port()]
    done = accelerate(*options, str(SCRIPT), str(tmp_path))
    assert done.returncode != 0
    refusals = re.findall(r"ConfigError: FSDP shards the student.*", done.stderr)
    assert len(refusals) == 2
    assert all("Use data parallelism" in text for text in refusals)
    assert "reward" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "first"),
    [
        (["--semantics", "exact"], ""),
        (["--semantics", "verl", "--hybrid", "0.3"], ""),
        (["--semantics", "exact", "--fault", "here"], "aggregate"),
        (["--semantics", "verl", "--fault", "twice"], "accumulate"),
        (["--semantics", "verl", "--fault", "own"], "demonstration"),
    ],
)
def test_the_audit_follows_two_processes(options, first, tmp_path):
    ranks = launch(tmp_path / "two", 2, "--audit", *options)
    students = [{n: p for n, p in rank.items() if n.startswith("student")} for rank in ranks]
    assert tiny_trainer.same(*students)
    found = {}
    for name in ("parity", "drift"):
        with (tmp_path / "two" / "parity" / f"{name}.csv").open(encoding="utf-8") as file:
            found[name] = list(csv.DictReader(file))
    assert [row["step"] for row in found["parity"]] == ["1", "2", "3"]
    assert [row["first_moved"] for row in found["parity"]] == [first] * 3
    for name in ("gradient", "weights", "teacher"):
        values = [float(row[f"{name}_relative"]) for row in found["parity"]]
        assert (max(values) < 1e-4) == (not first)
    assert [row["step"] for row in found["drift"]] == ["1", "2", "3"]


@pytest.mark.slow
def test_the_reference_semantics_depend_on_the_split_over_processes(tmp_path):
    """verl: each rank's micro-batches have their own means, and ranks are averaged."""
    (single,) = launch(tmp_path / "one", 1, "--semantics", "verl")
    ranks = launch(tmp_path / "two", 2, "--semantics", "verl")
    assert distance(ranks[1], ranks[0], "student") == 0
    assert distance(ranks[0], single, "student") > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("semantics", ["verl", "exact"])
def test_a_rank_without_signal_neither_hangs_nor_differs(semantics, tmp_path):
    ranks = launch(tmp_path / "two", 2, "--group", "4", "--semantics", semantics)
    assert ranks[0]["signal"].tolist() == [0, 0, 0]
    assert min(ranks[1]["signal"].tolist()) > 0
    assert distance(ranks[1], ranks[0], "student") == 0
    assert distance(ranks[1], ranks[0], "teacher") == 0
    assert ranks[0]["moves"].item() == 3
