"""pytest plugin: fixture and marker `sdpo_parity`. Imports nothing heavy until it is used."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack, cast

import pytest

from sdpo.parity.compare.statuses import FAILING

if TYPE_CHECKING:
    from sdpo.parity.in_python import Candidate
    from sdpo.parity.report.run_report import RunReport

_MARKER = (
    "sdpo_parity(candidate, stages, declared, goldens, require, coverage, min_cases): what the "
    "fixture `sdpo_parity` audits unless told otherwise; all but the candidate are optional"
)
_OPTIONS = ("candidate", "stages", "declared", "goldens", "require", "coverage", "min_cases")
Names = str | Path | Sequence[str | Path]


class AuditOptions(TypedDict, total=False):
    """What is audited of a candidate, by the names of `sdpo.audit`."""

    stages: Names
    declared: Names
    goldens: Names
    require: Names
    coverage: int
    min_cases: int


class MarkedOptions(AuditOptions, total=False):
    """The same, with the candidate: what a marker can say."""

    candidate: "Candidate"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that says where reports go."""
    group = parser.getgroup("sdpo", "parity with the SDPO reference")
    group.addoption(
        "--sdpo-parity-out",
        metavar="DIR",
        help="write the reports of `sdpo_parity` to this folder (default: a temporary one)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", _MARKER)


@pytest.fixture
def sdpo_parity(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., "RunReport"]:
    """A function that audits a candidate and returns its report; PASS or DECLARED, or it fails.

    `sdpo_parity(candidate, *, stages, declared, goldens, require, coverage, min_cases)`; what is
    left out comes from the marker of the same name. The candidate is `FILE.py:attr` (relative to
    the test's folder or to the root of the repository), `pkg.mod:attr`, or a function or class of a
    module. It runs in a process of its own, with the import path of the tests.
    """
    marker = request.node.get_closest_marker("sdpo_parity")
    folder = Path(request.config.getoption("--sdpo-parity-out") or tmp_path / "sdpo-parity")
    roots = (request.path.parent, request.config.rootpath, Path.cwd())

    def check(candidate: "Candidate | None" = None, **options: Unpack[AuditOptions]) -> "RunReport":
        merged: MarkedOptions = {**marked(marker), **options}
        if unknown := sorted(set(merged) - set(_OPTIONS)):
            raise pytest.UsageError(f"sdpo_parity: unknown {unknown}; valid are {list(_OPTIONS)}")
        chosen = candidate if candidate is not None else merged.get("candidate")
        if not chosen:
            raise pytest.UsageError("sdpo_parity: no candidate in the marker or in the call")
        run, report = _audited(chosen, merged, roots, folder)
        if run.exit_code != 0:
            pytest.fail(message(run, report), pytrace=False)
        return run

    return check


def marked(marker: pytest.Mark | None) -> MarkedOptions:
    """Read the options of a marker; its first positional argument is the candidate."""
    if marker is None:
        return {}
    options = {**dict(zip(_OPTIONS, marker.args, strict=False)), **marker.kwargs}
    return cast("MarkedOptions", options)


def _audited(
    candidate: "Candidate", options: MarkedOptions, roots: Sequence[Path], folder: Path
) -> "tuple[RunReport, Path]":
    """Audit in a process of its own: the report, and the folder of its renderings."""
    from sdpo.parity.audit.request import MIN_CASES, UsageError, folder_name
    from sdpo.parity.in_python import audit, candidate_name

    try:
        name = located_candidate(candidate_name(candidate), roots)
        run = audit(
            name,
            goldens=[_located(path, roots) for path in listed(options.get("goldens"))],
            declared=[_located(path, roots) for path in listed(options.get("declared"))],
            stages=listed(options.get("stages")),
            require=listed(options.get("require")),
            coverage=options.get("coverage", 0),
            min_cases=options.get("min_cases", MIN_CASES),
            out=folder,
        )
    except UsageError as error:
        raise pytest.UsageError(f"sdpo_parity: {error}") from error
    return run, folder / folder_name(name)


def listed(value: Names | None) -> list[str]:
    """Make a list of texts of one text or path, or of several."""
    if value is None:
        return []
    return [str(value)] if isinstance(value, (str, Path)) else [str(item) for item in value]


def located_candidate(candidate: str, roots: Sequence[Path]) -> str:
    """Name a candidate with its file below the first of the roots that has it."""
    target, separator, attribute = candidate.rpartition(":")
    if target.endswith(".py"):
        return f"{_located(target, roots)}{separator}{attribute}"
    return candidate


def _located(path: str, roots: Sequence[Path]) -> str:
    """Find a path below the first of the roots that has it; it stays as it is if none has."""
    return next((str(root / path) for root in roots if (root / path).exists()), path)


def message(run: "RunReport", report: Path) -> str:
    """Write what a failing test says: diagnosis, the stages that fail, and where the report is."""
    from sdpo.parity.render.text import first_line, front, one_line

    if not run.started:
        return first_line(run)
    lines = [
        f"  {row.name}: {row.status}, {one_line(row.note)}"
        for row in run.stages
        if row.status in FAILING
    ]
    return "\n".join([front(run), *lines, f"  report: {report / 'report.md'}"])
