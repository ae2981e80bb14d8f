"""Measures how many solutions per second the executor scores, beside two simpler ways.

    python -m sdpo.benchmark.performance.executor_rate [--data FILE] [--workers 2] [--repeats 3]

*bare*: one `subprocess.run([python, file])` after the other, the verdict being the exit status;
this is what earlier benchmarks do. *fresh*: a new `python -I -S` per solution, as many at a time as
the executor has workers. Both are unconfined and can be cheated; they set the scale. All three run
interleaved, so that a change of load meets all of them.
"""

import concurrent.futures
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sdpo.benchmark.performance.tables import options
from sdpo.benchmark.problems.case import Case
from sdpo.benchmark.problems.dataset import load_file
from sdpo.benchmark.scoring.check_references import reference_case
from sdpo.benchmark.scoring.executor import Executor
from sdpo.runtime.markdown_table import markdown_table

SLOW_TASKS = frozenset({123})
"""Solutions that run for seconds, and so measure themselves."""
LIMIT = 60.0
SOLUTIONS = (
    ("def double(n):\n    return 2 * n\n", "double", ((3, 6), (0, 0), (-2, -4))),
    ("def ends(x):\n    return [x[0], x[-1]]\n", "ends", (([1, 2], [1, 2]), ([5], [5, 5]))),
    (
        "import re\ndef words(s):\n    return re.findall(r'\\w+', s)\n",
        "words",
        (("a b", ["a", "b"]), ("", []), ("x-y", ["x", "y"])),
    ),
    (
        "from collections import Counter\ndef most(s):\n"
        "    return Counter(s).most_common(1)[0][0]\n",
        "most",
        (("aab", "a"), ("b", "b"), ("cbc", "c")),
    ),
)


def small_cases(count: int) -> list[Case]:
    """Make small solutions with two or three asserts each."""
    cases = []
    for index in range(count):
        code, name, pairs = SOLUTIONS[index % len(SOLUTIONS)]
        tests = tuple(f"assert {name}({argument!r}) == {value!r}" for argument, value in pairs)
        cases.append(Case(index, code, tests))
    return cases


def _write(cases: Sequence[Case], folder: Path) -> list[str]:
    paths = []
    for index, case in enumerate(cases):
        path = folder / f"{index}.py"
        parts = (case.test_imports, case.completion, case.test_setup_code, *case.test_list)
        path.write_text("\n".join(parts))
        paths.append(str(path))
    return paths


def _passes(command: list[str]) -> bool:
    return subprocess.run(command, capture_output=True, timeout=LIMIT, check=False).returncode == 0


def bare(paths: Sequence[str]) -> int:
    """Count the files that pass, run one after the other."""
    return sum(_passes([sys.executable, path]) for path in paths)


def fresh(paths: Sequence[str], workers: int) -> int:
    """Count the files that pass in isolated interpreters, `workers` at a time."""
    with concurrent.futures.ThreadPoolExecutor(workers) as threads:
        return sum(threads.map(lambda path: _passes([sys.executable, "-I", "-S", path]), paths))


def scored(executor: Executor, cases: Sequence[Case]) -> int:
    """Count the cases that pass in the executor."""
    return sum(result.status == "pass" for result in executor.map(cases))


def _rate(run: Callable[[], int], count: int) -> float:
    began = time.perf_counter()
    passed = run()
    elapsed = time.perf_counter() - began
    if passed != count:
        raise RuntimeError(f"{count - passed} of {count} solutions did not pass: not comparable")
    return count / elapsed


def measure(
    cases: Sequence[Case], workers: int, repeats: int
) -> tuple[dict[str, list[float]], int]:
    """Measure solutions per second of each way, once per repeat; counts the active layers.

    Raises:
        RuntimeError: a solution does not pass.
    """
    rates: dict[str, list[float]] = {"bare": [], "fresh": [], "executor": []}
    # The slowest way gets fewer solutions, so that no way runs much longer than the others.
    few = max(1, len(cases) // 4)
    with tempfile.TemporaryDirectory() as folder, Executor(workers) as executor:
        paths = _write(cases, Path(folder))
        for _ in range(repeats):
            rates["bare"].append(_rate(lambda: bare(paths[:few]), few))
            rates["fresh"].append(_rate(lambda: fresh(paths, workers), len(paths)))
            rates["executor"].append(_rate(lambda: scored(executor, cases), len(cases)))
        return rates, len(executor.isolation)


def table(rates: dict[str, list[float]], layers: int, workers: int) -> str:
    """Show medians, and the executor's median ratio to each way."""
    labels = {
        "bare": "bare subprocess, one after the other",
        "fresh": f"fresh `python -I -S`, {workers} at a time",
        "executor": f"executor, {workers} workers, {layers} layers",
    }
    rows = []
    for name, label in labels.items():
        ratios = [e / r for e, r in zip(rates["executor"], rates[name], strict=True)]
        ratio = "" if name == "executor" else f"{statistics.median(ratios):.1f}x"
        rows.append((label, f"{statistics.median(rates[name]):.0f}", ratio))
    return markdown_table(("way", "solutions/s", "executor is faster by"), rows)


def main() -> None:
    """Measure and print the table."""
    parser = options(__doc__, workers=2, repeats=3)
    parser.add_argument("--data", type=Path, help="published MBPP file; default: small solutions")
    chosen = parser.parse_args()
    if chosen.data is None:
        cases = small_cases(400)
    else:
        problems = load_file(chosen.data).problems
        cases = [reference_case(p) for p in problems if p.task_id not in SLOW_TASKS]
    rates, layers = measure(cases, chosen.workers, chosen.repeats)
    print(table(rates, layers, chosen.workers))


if __name__ == "__main__":
    main()
