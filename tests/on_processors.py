"""Run the tests with the kernels of other processors, one environment after the other.

    python tests/on_processors.py              the whole suite in each environment
    python tests/on_processors.py --numeric    the numeric tests in those of `IN_CI`, as CI does
    python tests/on_processors.py --only default mkl-avx2 -- tests/trainer -x

What follows `--` goes to pytest in place of what it would run. Every environment is run, whatever
became of the one before; those that failed are named at the end, and the exit code is 1.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
ENVIRONMENTS: dict[str, dict[str, str]] = {
    "native": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2"},
    "default": {"ATEN_CPU_CAPABILITY": "default"},
    "compatible": {"MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "mkl-avx2": {"MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
}
"""Which vector instructions torch itself takes (ATEN), and which kernels MKL and oneDNN."""

IN_CI = ("default", "compatible")
"""The two that are furthest from a present processor: no vectors, and the oldest kernels."""

NUMERIC = (
    "tests/equivalence",
    "tests/properties",
    "tests/parity/truth/test_budget.py",
    "tests/fused/test_fused_loss.py",
    "tests/fused/test_gradient_buffer.py",
    "tests/fused/test_lm_head.py",
    "tests/project/test_measured.py",
    "tests/loss/test_log_softmax.py",
    "tests/update/test_actor_update.py",
    "tests/fused/test_vocabulary_scan.py",
    "tests/parity/truth/test_norm_limit.py",
    "tests/trainer/test_micro_batch_loss.py",
    "tests/trainer/test_sdpo_trainer.py",
    "tests/parity/trainers/probes/test_run_probes.py",
    "tests/update/test_shared_prefix.py",
    "tests/trainer/test_self_teachers.py",
    "tests/equivalence/test_trainer_against_verl_update.py",
)
"""Tests that compare computed numbers, within about a minute and a half on two cores."""


def ran_well(name: str, arguments: Sequence[str]) -> bool:
    """Whether pytest succeeds in an environment; what it prints is passed on."""
    settings = ENVIRONMENTS[name]
    told = " ".join(f"{key}={value}" for key, value in settings.items()) or "nothing set"
    print(f"== {name}: {told}", flush=True)
    start = time.monotonic()
    known = {key for entry in ENVIRONMENTS.values() for key in entry}
    environment = {key: value for key, value in os.environ.items() if key not in known} | settings
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadfile", *arguments]
    done = subprocess.run(command, env=environment, cwd=ROOT, check=False)
    outcome = "passed" if done.returncode == 0 else f"FAILED (pytest returned {done.returncode})"
    print(f"== {name}: {outcome} in {time.monotonic() - start:.0f} s", flush=True)
    return done.returncode == 0


def main(arguments: list[str]) -> int:
    """Run what is asked for and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--numeric", action="store_true", help="numeric tests, in CI's two")
    parser.add_argument("--only", nargs="+", choices=ENVIRONMENTS, help="these environments")
    parser.add_argument("pytest", nargs="*", help="arguments of pytest, after --")
    chosen = parser.parse_args(arguments)
    names = chosen.only or (IN_CI if chosen.numeric else tuple(ENVIRONMENTS))
    passed_on = chosen.pytest or (NUMERIC if chosen.numeric else ())
    failed = [name for name in names if not ran_well(name, passed_on)]
    print(f"== {len(names) - len(failed)} of {len(names)} environments passed", end="")
    print(f"; failed: {', '.join(failed)}" if failed else "")
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
