"""What a user asks an audit for; sent as JSON to the process that runs it."""

import re
import shlex
from collections.abc import Sequence

from msgspec import Struct

from sdpo.parity.capabilities.declared import Capabilities
from sdpo.parity.cases.stages import NAMES
from sdpo.runtime.time_limit import TIMEOUT

MIN_CASES = 20
"""Cases that a pass takes at least, unless asked otherwise."""


class UsageError(Exception):
    """The request makes no sense; the message says why."""


class Request(Struct, frozen=True, forbid_unknown_fields=True):
    """What to audit.

    Attributes:
        candidate: its name, `FILE.py:attr` or `pkg.mod:attr`.
        goldens: folders of golden data; the packaged ones if empty.
        declared: ledgers of declared deviations, by path or packaged name.
        stages: only these are judged; all if empty.
        require: stages without which no pass is given, beside those the candidate claims.
        coverage: how many stages must be covered at least.
        min_cases: how many cases must be compared at least; more than half where few ran.
        capabilities: what the candidate can be asked, beside what it declares itself.
        timeout: seconds that a call of a loss function may take; 0 for any time.
        seed: of the generated cases.
        explore: seconds for which further cases are generated at random.
    """

    candidate: str
    goldens: tuple[str, ...] = ()
    declared: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()
    require: tuple[str, ...] = ()
    coverage: int = 0
    min_cases: int = MIN_CASES
    capabilities: Capabilities | None = None
    timeout: float = TIMEOUT
    seed: int = 0
    explore: float = 0.0

    @property
    def generates(self) -> bool:
        """Whether cases are generated: beside the packaged golden data, or to explore."""
        return not self.goldens or self.explore > 0

    @property
    def command(self) -> str:
        """Write the command that repeats the audit."""
        words = ["sdpo", "audit", self.candidate]
        words += ["--stages", ",".join(self.stages)] if self.stages else []
        words += ["--require", ",".join(self.require)] if self.require else []
        words += ["--coverage", str(self.coverage)] if self.coverage else []
        words += ["--min-cases", str(self.min_cases)] if self.min_cases != MIN_CASES else []
        words += ["--timeout", f"{self.timeout:g}"] if self.timeout != TIMEOUT else []
        words += ["--seed", str(self.seed)] if self.seed else []
        words += ["--explore", f"{self.explore:g}"] if self.explore else []
        for path in self.goldens:
            words += ["--goldens", path]
        for path in self.declared:
            words += ["--declared", path]
        return shlex.join(words)

    @property
    def folder(self) -> str:
        """Make a folder name for the candidate."""
        return folder_name(self.candidate)

    def check(self) -> None:
        """Reject names that are no stages.

        Raises:
            UsageError: there is one.
        """
        check_stages("--stages", self.stages)
        check_stages("--require", self.require)


def folder_name(candidate: str) -> str:
    """Make a folder name for a candidate."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", candidate).strip("-.") or "candidate"


def check_stages(option: str, stages: Sequence[str]) -> None:
    """Reject names that are no stages.

    Raises:
        UsageError: there is one.
    """
    if unknown := [stage for stage in stages if stage not in NAMES]:
        raise UsageError(f"{option}: unknown stages {unknown}; valid are {', '.join(NAMES)}")
