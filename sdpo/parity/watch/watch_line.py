"""The history of a watch: one JSON line for each audit of a release, only ever appended to.

A line holds what departed as it was measured, so that entries of a ledger that is written later
are followed back through older lines too.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from msgspec import Meta, Struct

from sdpo.parity.report.report_rows import Size

Outcome = Literal["audited", "not audited", "not installed"]


class Departure(Struct, frozen=True, forbid_unknown_fields=True):
    """What departs from the reference by itself in one case at one stage.

    Attributes:
        case: id of the case or scenario.
        tags: of the case.
        stage: where it departs.
        effect: how, as in a report; `error` where the candidate failed.
        size: the largest |Δ| of its values; 0 for texts.
        faults: ids of the known faults that give the candidate's results in this case.
    """

    case: str
    tags: tuple[str, ...]
    stage: str
    effect: str
    size: Size
    faults: tuple[str, ...]


class WatchLine(Struct, frozen=True, forbid_unknown_fields=True):
    """The audit of one release, or why there is none.

    Attributes:
        created: UTC, ISO 8601.
        harness: version of the harness.
        candidate: what was audited.
        upstream: the package whose releases are compared, or the name of a checkout's folder.
        release: its version, or the commit in full.
        committed: when a commit was made, ISO 8601; empty for versions.
        outcome: whether there was an audit.
        verdict: of the audit; empty without one.
        first_stage: of the audit.
        note: why there is no audit, or the message of one that failed.
        seconds: that the audit took.
        judged: the cases that were compared.
        departures: what departs by itself.
        versions: installed packages that decide how a candidate behaves.
        chosen: requirements of the user, in place of the versions of this harness.
    """

    schema_version: Literal[1]
    created: str
    harness: str
    candidate: str
    upstream: str
    release: str
    committed: str
    outcome: Outcome
    verdict: str
    first_stage: str | None
    note: str
    seconds: Annotated[float, Meta(ge=0)]
    judged: tuple[str, ...]
    departures: tuple[Departure, ...]
    versions: Mapping[str, str]
    chosen: tuple[str, ...] = ()

    @property
    def is_judged(self) -> bool:
        """Whether the release was audited, and nothing failed."""
        return self.outcome == "audited" and self.verdict != "ERROR"

    @property
    def short_release(self) -> str:
        """The release as a reader knows it: a commit by its first eight digits."""
        return self.release[:8] if self.committed else self.release
