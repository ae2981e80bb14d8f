"""Releases that tests make themselves: wheels in a folder, and audits of what is installed."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

from msgspec import structs

from sdpo.parity.compare.statuses import Status, Verdict
from sdpo.parity.explain.explanation_rows import Explanation
from sdpo.parity.report.document import failed
from sdpo.parity.report.report_rows import CaseRow, ComparisonRow
from sdpo.parity.report.run_report import RunReport

PACKAGE = "standin"
NOBODY = "/nowhere"

Sizes = Mapping[tuple[str, str], float]
"""|Δ| by case and stage."""


def wheel(
    folder: Path, version: str, *, name: str = PACKAGE, code: str = "", needs: str = ""
) -> None:
    """Write the wheel of a release, a package of one module."""
    folder.mkdir(parents=True, exist_ok=True)
    about = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += f"Requires-Dist: {needs}\n" if needs else ""
    files = {
        f"{name}/__init__.py": code,
        f"{about}/METADATA": metadata,
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{file},,\n" for file in [*files, f"{about}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for file, text in {**files, f"{about}/RECORD": record}.items():
            archive.writestr(file, text)


def offline_index(folder: Path) -> dict[str, str]:
    """Variables by which pip and uv know the wheels of a folder, and nothing else."""
    return {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(folder),
        "PIP_CONFIG_FILE": "/dev/null",
        "UV_NO_INDEX": "1",
        "UV_FIND_LINKS": str(folder),
        "UV_NO_CONFIG": "1",
    }


def run_that_shows(
    sizes: Sizes,
    *,
    holds: tuple[str, ...] = (),
    fails: tuple[str, ...] = (),
    faults: Mapping[str, tuple[str, ...]] | None = None,
    tags: tuple[str, ...] = (),
    message: str = "",
) -> RunReport:
    """The report of an audit in which some cases depart, hold or fail."""
    cases = {case: [] for case, _ in sizes} | {case: [] for case in (*holds, *fails)}
    for (case, stage), size in sizes.items():
        cases[case].append(
            ComparisonRow(stage, Status.DIVERGENT, max_abs=size, effect="value", place=[0, 0, 0])
        )
    rows = []
    for case, comparisons in cases.items():
        status = Status.DIVERGENT if comparisons else Status.PASS
        if case in fails:
            comparisons, status = [ComparisonRow("config", Status.ERROR)], Status.ERROR
        rows.append(CaseRow(case, "trainer", list(tags), status, None, "", False, comparisons))
    verdict = Verdict.ERROR if fails else Verdict.DIVERGENT if sizes else Verdict.PASS
    return structs.replace(
        failed("mine", "", message),
        verdict=verdict,
        cases=rows,
        message=message,
        explanations=[
            Explanation(label, len(names), len(cases), False, list(names))
            for label, names in (faults or {}).items()
        ],
        created="2030-01-01T00:00:00+00:00",
        seconds=1.0,
    )
