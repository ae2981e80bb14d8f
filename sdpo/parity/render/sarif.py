"""The report as SARIF 2.1.0: stages are rules, a failing stage is a result at the candidate's line.

The related location of a result is where the reference computes the stage. Files below the root of
the repository that the audit ran in have relative addresses.
"""

import hashlib
import json
from pathlib import Path
from urllib.parse import quote

from sdpo.parity.cases.stages import STAGES
from sdpo.parity.compare.statuses import Status, Verdict
from sdpo.parity.render.stage_view import REPOSITORY, digits
from sdpo.parity.render.text import first_line
from sdpo.parity.report.judgement import explanations, improvement_lines, judgement, number
from sdpo.parity.report.report_rows import StageRow
from sdpo.parity.report.run_report import RunReport
from sdpo.runtime.json_values import Json
from sdpo.settings.version import __version__

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_ROOT, _REFERENCE = "%SRCROOT%", "REFERENCE"
JsonObject = dict[str, Json]
_LEVELS = {Status.DIVERGENT: "error", Status.ERROR: "error", Status.DECLARED: "note"}


def sarif_report(run: RunReport, folder: Path | None = None) -> str:
    """Render a run as SARIF.

    Args:
        run: the report of one candidate.
        folder: files in the repository around it get relative addresses; default: the present one.
    """
    root = repository_root(folder or Path.cwd())
    commit = run.reference_commit
    results = [_result(run, row, root, commit) for row in run.stages if row.status in _LEVELS]
    if run.verdict != Verdict.PASS and not any(r["level"] == "error" for r in results):
        results += _verdict_result(run, root)
    document: JsonObject = {
        "tool": {"driver": _driver()},
        "results": results,
        "columnKind": "unicodeCodePoints",
        "invocations": [_invocation(run)],
        "properties": {
            "candidate": run.candidate,
            "verdict": run.verdict,
            "explained_by": run.explained_by,
            "judgement": [*judgement(run), *improvement_lines(run)],
        },
    }
    if commit is not None:
        base = {"uri": f"{REPOSITORY}/blob/{commit}/"}
        document["originalUriBaseIds"] = {_REFERENCE: base}
    report = {"$schema": _SCHEMA, "version": "2.1.0", "runs": [document]}
    return json.dumps(report, indent=1, ensure_ascii=False) + "\n"


def _driver() -> JsonObject:
    """Describe this tool, with a rule for the verdict and one for each stage."""
    rules = [
        {
            "id": f"sdpo/{stage.name}",
            "name": "".join(word.capitalize() for word in stage.name.split("_")),
            "shortDescription": {"text": f"stage {stage.number}: {stage.compares}"},
            "help": {"text": f"Where the reference computes it: {stage.source}"},
            "defaultConfiguration": {"level": "error"},
        }
        for stage in STAGES.values()
    ]
    verdict = {
        "id": "sdpo/verdict",
        "name": "Verdict",
        "shortDescription": {"text": "the audit as a whole"},
        "help": {"text": "INCONCLUSIVE is no pass; a declared deviation must still hold."},
        "defaultConfiguration": {"level": "warning"},
    }
    return {"name": "sdpo", "version": __version__, "rules": [*rules, verdict]}


def _result(run: RunReport, row: StageRow, root: Path, commit: str | None) -> JsonObject:
    """Report a stage that does not agree."""
    stage = STAGES[row.name]
    entry: JsonObject = {
        "ruleId": f"sdpo/{stage.name}",
        "ruleIndex": stage.number - 1,
        "level": _LEVELS[row.status],
        "message": {"text": message(run, row)},
        "locations": _locations(run, row.name, root),
        "partialFingerprints": _fingerprint(run, stage.name),
    }
    if row.status == Status.DECLARED:
        entry["suppressions"] = [{"kind": "external", "justification": row.note}]
    if commit is not None:
        first = run.first_stage if row.name == run.first_observed else None
        names = dict.fromkeys(name for name in (row.name, first) if name)
        entry["relatedLocations"] = [_related(n, name) for n, name in enumerate(names, start=1)]
    return entry


def _related(number: int, name: str) -> JsonObject:
    """Say where the reference computes a stage."""
    path, _, lines = STAGES[name].source.partition(":")
    first, _, last = lines.partition("-")
    place = {
        "artifactLocation": {"uri": path, "uriBaseId": _REFERENCE},
        "region": {"startLine": int(first), "endLine": int(last or first)},
    }
    text = f"the reference computes {name} here"
    return {"id": number, "physicalLocation": place, "message": {"text": text}}


def message(run: RunReport, row: StageRow) -> str:
    """Say what is wrong at a stage, to someone who sees only this."""
    parts = [f"{row.status} at stage {row.name}"]
    parts += [row.note] if row.note else []
    if row.worst:
        actual, expected = digits(row.worst["actual"], row.worst["expected"])
        budget = number(row.worst.get("budget"))
        case = row.worst.get("case", "")
        parts.append(f"case {case}: {actual}, expected {expected}, budget {budget}")
    if row.status == Status.DIVERGENT and row.relative is not None:
        parts.append(f"{number(row.relative)} of the value")
    if run.first_stage and row.status != Status.DECLARED:
        how = " (inferred)" if run.first_stage_inferred else ""
        parts.append(f"first departs at {run.first_stage}{how}")
        parts += [f"explained by {explanations(run)}"] if run.explained_by else []
    return "; ".join(parts)


def _verdict_result(run: RunReport, root: Path) -> list[JsonObject]:
    """Report a verdict that no stage shows: INCONCLUSIVE, a ledger that no longer holds, none."""
    if run.verdict == Verdict.DECLARED:
        return []
    return [
        {
            "ruleId": "sdpo/verdict",
            "ruleIndex": len(STAGES),
            "level": "warning" if run.verdict == Verdict.INCONCLUSIVE else "error",
            "message": {"text": "; ".join([first_line(run), *run.reasons[:6]])},
            "locations": _locations(run, None, root),
            "partialFingerprints": _fingerprint(run, "verdict"),
        }
    ]


def _invocation(run: RunReport) -> JsonObject:
    """Describe the audit as a process; one that could not be carried out was not successful."""
    process: JsonObject = {
        "executionSuccessful": bool(run.cases),
        "exitCode": run.exit_code,
    }
    if run.repro:
        process["commandLine"] = run.repro
    if run.created:
        process["endTimeUtc"] = run.created.replace("+00:00", "Z")
    return process


def _locations(run: RunReport, stage: str | None, root: Path) -> list[JsonObject]:
    """Say where the candidate computes a stage, as far as it is known."""
    location = run.location_of(stage)
    if location is None:
        return []
    place = {"artifactLocation": address(Path(location.file), root)}
    return [{"physicalLocation": place | {"region": {"startLine": location.line}}}]


def address(file: Path, root: Path) -> dict[str, str]:
    """Name a file relative to the root of the repository, or in full if it lies elsewhere."""
    file = (root / file).resolve()
    if file.is_relative_to(root):
        return {"uri": quote(file.relative_to(root).as_posix()), "uriBaseId": _ROOT}
    return {"uri": file.as_uri()}


def repository_root(folder: Path) -> Path:
    """Find the closest folder upwards that has a `.git`; the folder itself if there is none."""
    folder = folder.resolve()
    return next((path for path in (folder, *folder.parents) if (path / ".git").exists()), folder)


def _fingerprint(run: RunReport, what: str) -> dict[str, str]:
    """Say what makes two results the same in the eyes of a viewer: candidate and stage."""
    text = f"{Path(run.candidate).name}/{what}"
    return {"sdpo/v1": hashlib.sha256(text.encode()).hexdigest()[:16]}
