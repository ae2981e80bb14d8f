"""One release audited in an environment of its own, by the harness that runs here."""

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from msgspec import structs

from sdpo.parity.audit.request import folder_name
from sdpo.parity.live_fork.checkout import VARIABLE
from sdpo.parity.report.run_report import Report, RunReport
from sdpo.parity.watch.commits import clone_of
from sdpo.parity.watch.environments import Environment, InstallError, environment_of, plain
from sdpo.parity.watch.harness import lay_out, modules_of, requirements_of
from sdpo.parity.watch.sightings import departures_of, judged_cases
from sdpo.parity.watch.upstreams import Upstream
from sdpo.parity.watch.watch_line import Outcome, WatchLine
from sdpo.settings.version import __version__

LIMIT = 3600
"""Seconds that an audit may take."""
SHOWN = ("torch", "transformers", "trl", "peft", "accelerate")
"""Packages whose versions a line names, beside the upstream's own."""


class AuditLostError(Exception):
    """The process of an audit gave no report; the message says how it ended."""


def run_audit(
    environment: Environment, candidate: str, folder: Path, variables: dict[str, str]
) -> RunReport:
    """Run `sdpo audit` by the interpreter of an environment; its reports lie in a new folder.

    Raises:
        AuditLostError: there is no report of it.
    """
    shutil.rmtree(folder, ignore_errors=True)
    command = [str(environment.python), "-m", "sdpo", "audit", candidate, "--json"]
    command += ["--bundles", "0", "--out", str(folder)]
    with tempfile.TemporaryDirectory(prefix="sdpo-watch-") as modules:
        own = {**plain(), **variables, **modules_of(lay_out(Path(modules)))}
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=LIMIT,
                check=False,
                env=own,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            raise AuditLostError(f"the audit took more than {LIMIT} s") from None
    try:
        (run,) = msgspec.convert(msgspec.json.decode(done.stdout), Report).runs
    except (msgspec.DecodeError, ValueError) as error:
        said = " ".join((done.stdout + done.stderr).split())[-300:]
        raise AuditLostError(
            f"the audit ended with exit code {done.returncode} and without a report: {said}"
        ) from error
    return run


@dataclass(frozen=True)
class Workshop:
    """Where releases are audited.

    Attributes:
        cache: folder of environments and clones, kept from one watch to the next.
        out: folder of the reports.
        chosen: requirements of the user, for every environment.
        requirements: lists what an environment needs.
        run: audits a candidate by the interpreter of an environment.
    """

    cache: Path
    out: Path
    chosen: tuple[str, ...] = ()
    requirements: Callable[[Upstream, str, Sequence[str]], list[str]] = requirements_of
    run: Callable[[Environment, str, Path, dict[str, str]], RunReport] = run_audit

    def audit(self, upstream: Upstream, release: str, committed: str = "") -> WatchLine:
        """Audit a release; whatever keeps it from being judged is a line too.

        Raises:
            OSError: the cache or the folder of reports cannot be written.
        """
        line = self._audited(upstream, release, committed)
        return structs.replace(line, chosen=self.chosen)

    def _audited(self, upstream: Upstream, release: str, committed: str) -> WatchLine:
        """The line of an audit, or of what kept it from being made."""
        try:
            environment, variables = self.prepare(upstream, release)
        except InstallError as error:
            return unaudited(upstream, release, committed, "not installed", str(error))
        versions = environment.versions(dict.fromkeys((upstream.package, *SHOWN)))
        folder = self.out / folder_name(upstream.candidate) / folder_name(release)
        try:
            run = self.run(environment, upstream.candidate, folder, variables)
        except AuditLostError as error:
            return unaudited(upstream, release, committed, "not audited", str(error), versions)
        if not run.started:
            return unaudited(upstream, release, committed, "not audited", run.message, versions)
        return line_of(run, upstream, release, committed, versions)

    def prepare(self, upstream: Upstream, release: str) -> tuple[Environment, dict[str, str]]:
        """Take the environment of a release, and the variables that point at a checkout.

        Raises:
            InstallError: it cannot be installed or cloned.
        """
        variables = {}
        if upstream.checkout:
            variables[VARIABLE] = str(clone_of(upstream, release, self.cache / "commits"))
        requirements = self.requirements(upstream, release, self.chosen)
        return environment_of(requirements, self.cache / "environments"), variables


def line_of(
    run: RunReport, upstream: Upstream, release: str, committed: str, versions: dict[str, str]
) -> WatchLine:
    """The line of an audit."""
    return WatchLine(
        schema_version=1,
        created=run.created,
        harness=__version__,
        candidate=upstream.candidate,
        upstream=upstream.name,
        release=release,
        committed=committed,
        outcome="audited",
        verdict=run.verdict,
        first_stage=run.first_stage,
        note=run.message,
        seconds=run.seconds,
        judged=judged_cases(run),
        departures=departures_of(run),
        versions=versions,
    )


def unaudited(
    upstream: Upstream,
    release: str,
    committed: str,
    outcome: Outcome,
    note: str,
    versions: dict[str, str] | None = None,
) -> WatchLine:
    """The line of a release that could not be audited."""
    return WatchLine(
        schema_version=1,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        harness=__version__,
        candidate=upstream.candidate,
        upstream=upstream.name,
        release=release,
        committed=committed,
        outcome=outcome,
        verdict="",
        first_stage=None,
        note=note,
        seconds=0.0,
        judged=(),
        departures=(),
        versions=versions or {},
    )
