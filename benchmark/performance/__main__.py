"""Makes all performance measurements, one after the other, into reports/performance.

python -m sdpo.benchmark.performance            under ten minutes on two idle cores
python -m sdpo.benchmark.performance --full     hours: all vocabularies, K and numbers of tokens
python -m sdpo.benchmark.performance --only trainer_step audits
python -m sdpo.benchmark.performance --resume   leaves out what an interrupted run has finished

Each part is a command of its own, in processes of its own; `report.md` shows what they wrote, and
`parts.json` says how long they took. A part that fails stops the run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TypedDict

from sdpo.benchmark.performance.tables import OUT, machine
from sdpo.runtime.atomic_write import write_atomically
from sdpo.runtime.markdown_table import markdown_table

_PACKAGE = "sdpo.benchmark.performance"
PARTS: dict[str, dict[bool, list[str]]] = {
    "fused_loss": {
        False: ["--tokens", "128", "1024", "--repeats", "1"],
        True: [
            *("--vocabulary", "32000", "151936", "262144", "--topk", "20", "100"),
            *("--tokens", "128", "512", "1024", "2048", "4096", "8192", "--active", "1", "0.5"),
            *("--repeats", "3"),
        ],
    },
    "trainer_step": {False: ["--size", "small", "--repeats", "1"], True: ["--repeats", "5"]},
    "callback_overhead": {
        False: ["--steps", "24", "--length", "64"],
        True: ["--size", "tiny", "small", "--steps", "40"],
    },
    "executor_rate": {False: ["--repeats", "3"], True: ["--repeats", "5"]},
    "audits": {False: ["sdpo", "trl", "sdpo-rl"], True: ["sdpo", "sdpo-trainer", "trl", "sdpo-rl"]},
}
"""Arguments of each part: False for the quick run, True for the full one."""
_WRITES_ITSELF = ("fused_loss", "trainer_step")
TITLES = {
    "fused_loss": "Loss, forward and backward",
    "trainer_step": "Optimizer step of the trainers",
    "callback_overhead": "Lockstep audit, over a step without",
    "executor_rate": "Solutions scored per second",
    "audits": "Audits",
}


def command(part: str, arguments: list[str], out: Path) -> list[str]:
    """Write the command that measures a part."""
    start = [sys.executable, "-W", "ignore", "-m"]
    if part in _WRITES_ITSELF:
        return [*start, f"{_PACKAGE}.{part}", *arguments, "--out", str(out)]
    return [*start, f"{_PACKAGE}.{part}", *arguments]


def audits(candidates: list[str]) -> str:
    """Time `sdpo audit` of each candidate, start included."""
    rows = []
    for candidate in candidates:
        began = time.perf_counter()
        audit = [sys.executable, "-W", "ignore", "-m", "sdpo", "audit", candidate]
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run([*audit, "--out", folder], capture_output=True, text=True)
        if done.returncode not in (0, 1):
            raise SystemExit(f"{' '.join(audit[3:])} ended with {done.returncode}: {done.stderr}")
        seconds = time.perf_counter() - began
        rows.append((f"`sdpo audit {candidate}`", f"{seconds:.1f}", done.returncode))
        print(rows[-1], file=sys.stderr, flush=True)
    return markdown_table(("command", "wall, s", "exit status"), rows) + "\n"


def measure(part: str, arguments: list[str], out: Path) -> None:
    """Run one part and leave `out/PART.md`."""
    if part in _WRITES_ITSELF:
        subprocess.run(command(part, arguments, out), check=True)
        return
    if part == "audits":
        text = audits(arguments)
    else:
        done = subprocess.run(
            command(part, arguments, out), stdout=subprocess.PIPE, text=True, check=True
        )
        text = done.stdout
    text = f"{machine(threads=os.cpu_count())}; load average {os.getloadavg()[0]:.1f}\n\n{text}"
    (out / f"{part}.md").write_text(text, encoding="utf-8")


def report(out: Path) -> str:
    """Join the parts' tables under titles, with their plots."""
    pieces = ["# Performance\n"]
    for part, title in TITLES.items():
        for file in sorted(out.glob(f"{part}*.md")):
            picture = file.with_suffix(".png")
            plot = f"![{title}]({picture.name})\n\n" if picture.is_file() else ""
            which = "" if file.stem == part else f" (`{file.stem}`)"
            pieces.append(f"## {title}{which}\n\n{plot}{file.read_text(encoding='utf-8')}")
    return "\n".join(pieces)


class Finished(TypedDict):
    """Says with which arguments a part was measured, and how long it took."""

    arguments: list[str]
    seconds: int


def measure_all(names: list[str], out: Path, *, full: bool, resume: bool) -> None:
    """Measure one part after the other; `out/parts.json` grows with each."""
    file = out / "parts.json"
    stored: dict[str, Finished] = json.loads(file.read_text()) if file.is_file() else {}
    done = {part: row for part, row in stored.items() if resume or part not in names}
    for number, part in enumerate(names, 1):
        arguments, head = PARTS[part][full], f"[{number} of {len(names)}] {part}"
        if part in done and done[part]["arguments"] == arguments:
            print(f"{head}: finished before", file=sys.stderr, flush=True)
            continue
        print(f"{head} {' '.join(arguments)}", file=sys.stderr, flush=True)
        began = time.monotonic()
        done.pop(part, None)
        write_atomically(file, json.dumps(done, indent=1) + "\n")
        measure(part, arguments, out)
        done[part] = {"arguments": arguments, "seconds": round(time.monotonic() - began)}
        write_atomically(file, json.dumps(done, indent=1) + "\n")
        print(f"{head}: {done[part]['seconds']} s", file=sys.stderr, flush=True)


def main() -> None:
    """Measure what is asked for, and write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--full", action="store_true", help="all shapes and more rounds; hours")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[*PARTS])
    parser.add_argument("--resume", action="store_true", help="leave out parts that are finished")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the results")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    measure_all(chosen.only, chosen.out, full=chosen.full, resume=chosen.resume)
    (chosen.out / "report.md").write_text(report(chosen.out), encoding="utf-8")


if __name__ == "__main__":
    main()
