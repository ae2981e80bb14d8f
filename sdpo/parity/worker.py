"""An audit in a process of its own: `python -m sdpo.parity.worker REQUEST RESULT`.

The candidate's code runs here, away from the process that reports: it may print, exit or crash.
"""

import gc
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress


def plain(value: Any) -> Any:
    """A document without NaN and infinities, which JSON lacks: they become texts."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def main(request_file: str, result_file: str) -> None:
    """Read the request, audit with a progress bar on standard error, write the RUN document."""
    gc.disable()  # searching what imports leave for garbage is a sixth of the time torch takes
    from sdpo.parity.audit import Request, audit

    gc.freeze()
    gc.enable()
    request = Request.from_fields(json.loads(Path(request_file).read_text(encoding="utf-8")))
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def advance(family: str, done: int, total: int) -> None:
            if family not in tasks:
                tasks[family] = bar.add_task(f"{request.candidate}: {family}", total=total)
            bar.update(tasks[family], completed=done)

        run = audit(request, advance)
    partial = Path(result_file + ".partial")
    partial.write_text(json.dumps(plain(run), ensure_ascii=False), encoding="utf-8")
    os.replace(partial, result_file)


if __name__ == "__main__":
    main(*sys.argv[1:])
