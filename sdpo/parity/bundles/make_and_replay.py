"""Makes and replays bundles in a process of its own.

`python -m sdpo.parity.bundles.make_and_replay MODE IN OUT`.

The candidate's code runs here. MODE `make` turns failing cases of a report into shrunk bundles,
`replay` runs the case of a bundle again.
"""

import re
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdpo.fixtures import GoldenDataError
from sdpo.parity.audit.audit import SEEDS, load_goldens, run_loss_case
from sdpo.parity.audit.child_process import answer
from sdpo.parity.audit.load_candidate import load_candidate
from sdpo.parity.bundles.loss_bundle import Bundle, BundleError, read, write
from sdpo.parity.bundles.scenario_bundle import TrainerBundle, is_trainer_bundle, seen_in
from sdpo.parity.bundles.shrink_case import shrink
from sdpo.parity.candidates.loss_functions import LossFunction
from sdpo.parity.cases.checked_call import CandidateError, LossCandidate
from sdpo.parity.cases.loss_case import LossCase
from sdpo.parity.cases.stages import STAGES
from sdpo.parity.compare.evaluated_case import loss_cases
from sdpo.parity.compare.statuses import EXIT_CODES, FAILING, Status
from sdpo.parity.compare.verdict import CaseResult, run_verdict
from sdpo.parity.report.environment import describe_environment
from sdpo.parity.trainers.recording.adapter_base import TrainerAdapter
from sdpo.settings.determinism import deterministic

Signature = frozenset[tuple[str, str, str]]


def signature(result: CaseResult) -> Signature:
    """In which way a case fails: which stages, and what kind of effect or error each shows."""
    return frozenset(
        (c.stage, c.status, c.effect if c.status != Status.ERROR else c.note.partition(":")[0])
        for c in result.comparisons
        if c.status in FAILING
    )


def seen(result: CaseResult) -> dict[str, Any]:
    """What a bundle keeps of a candidate's result."""
    row = result.row()
    return {name: row[name] for name in ("status", "first_stage", "note")}


def make(request: Mapping[str, Any]) -> dict[str, Any]:
    """Bundles of the failing loss cases with the smallest inputs.

    Args:
        request: `candidate`, `goldens`, `command`, `cases` (ids), `folder`, `count`.

    Returns:
        `bundles`: one row for each; or `problem`, why there are none.
    """
    with deterministic(SEEDS[0]) as settings:
        candidate = load_candidate(request["candidate"])
        environment = describe_environment(settings, SEEDS)
        if isinstance(candidate, TrainerAdapter):
            return {"bundles": make_of_trainer(candidate, request, environment), "problem": ""}
        if not isinstance(candidate, LossFunction):
            return {"bundles": [], "problem": ""}
        families = [f for f in load_goldens(request["goldens"]) if f.name == "loss"]
        cases = [case for family in families for case in loss_cases(family)]
        failing = [case for case in cases if case.id in set(request["cases"])]
        failing.sort(key=lambda case: case.student_logits.numel())
        rows = []
        for case in failing[: request["count"]]:
            bundle = bundle_of(candidate, case)
            file = Path(request["folder"]) / (re.sub(r"[^\w.-]+", "-", case.id) + ".zip")
            write(file, replace(bundle, environment=environment, command=request["command"]))
            rows.append({"case": case.id, "file": f"bundles/{file.name}", **bundle.shrunk})
    return {"bundles": rows, "problem": ""}


def make_of_trainer(
    candidate: TrainerAdapter, request: Mapping[str, Any], environment: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Bundles of failing scenarios; `cases` are ids with their first stages."""
    from sdpo.parity.bundles.scenario_bundle import pack, smallest_first
    from sdpo.parity.bundles.scenario_bundle import write as write_scenario
    from sdpo.parity.trainers.scenarios.catalogue import SCENARIOS

    stages = dict(request["cases"])
    failing = [(scenario, stages[scenario.id]) for scenario in SCENARIOS if scenario.id in stages]
    rows = []
    for scenario in smallest_first(failing)[: request["count"]]:
        bundle = pack(candidate, scenario, environment, request["command"])
        bundle = replace(bundle, candidate=request["candidate"])
        file = Path(request["folder"]) / f"{scenario.id}.zip"
        write_scenario(file, bundle)
        rows.append({"case": scenario.id, "file": f"bundles/{file.name}", **bundle.shrunk})
    return rows


def bundle_of(candidate: LossCandidate, case: LossCase) -> Bundle:
    """A failing case, shrunk as far as it fails in the same way.

    A case that does not fail without the values that were recorded with it stays as it is.
    """
    whole = run_loss_case(candidate, case)[0]
    wanted = signature(whole)

    def fails(smaller: LossCase) -> bool:
        return signature(run_loss_case(candidate, smaller)[0]) == wanted

    bare = replace(case, recorded={})
    found, tries = case, 1
    if fails(bare):
        shrunk = shrink(bare, fails)
        found, tries = shrunk.case, shrunk.tries + 1
    shape = {"before": list(case.student_logits.shape), "after": list(found.student_logits.shape)}
    result = run_loss_case(candidate, found)[0]
    return Bundle(found, candidate.name, seen(result), {**shape, "tries": tries})


def replay(request: Mapping[str, Any]) -> dict[str, Any]:
    """Run the case of a bundle again.

    Args:
        request: `bundle` (a path) and `candidate` (a name, or empty for the bundle's own).

    Returns:
        The document that `sdpo replay --json` prints.
    """
    path = Path(request["bundle"])
    if is_trainer_bundle(path):
        return replay_trainer(path, request["candidate"])
    bundle = read(path)
    name = request["candidate"] or bundle.candidate
    with deterministic(SEEDS[0]) as settings:
        environment = describe_environment(settings, SEEDS)
        candidate = load_candidate(name)
        if not isinstance(candidate, LossFunction):
            raise CandidateError(
                "config", f"{name} is no loss function; this bundle replays only these"
            )
        result, doubts, _ = run_loss_case(candidate, bundle.case)
    rows, tokens, vocabulary = bundle.case.student_logits.shape
    return replayed(name, bundle, result, doubts, environment) | {
        "size": f"{rows} rows, {tokens} tokens, {vocabulary} entries of the vocabulary"
    }


def replay_trainer(path: Path, candidate: str) -> dict[str, Any]:
    """Run the scenario of a trainer's bundle again; the document is that of `replay`."""
    from sdpo.parity.bundles.scenario_bundle import first_weights, judge, size_of
    from sdpo.parity.bundles.scenario_bundle import read as read_scenario

    bundle = read_scenario(path)
    name = candidate or bundle.candidate
    with deterministic(SEEDS[0]) as settings:
        environment = describe_environment(settings, SEEDS)
        adapter = load_candidate(name)
        if not isinstance(adapter, TrainerAdapter):
            raise CandidateError("config", f"{name} is no trainer; this bundle holds a scenario")
        result = judge(adapter, bundle.scenario)
        weights = first_weights(bundle.scenario)
    updates, groups, rows = size_of(bundle.scenario)
    found = replayed(name, bundle, result, [], environment)
    if weights != bundle.weights:
        found["environment_differs"]["first weights"] = [bundle.weights, weights]
    return found | {"size": f"updates: {updates}, groups: {groups}, rows: {rows}"}


def replayed(
    name: str,
    bundle: "Bundle | TrainerBundle",
    result: CaseResult,
    doubts: list[str],
    environment: Mapping[str, Any],
) -> dict[str, Any]:
    """The verdict of now beside that of then."""
    verdict = run_verdict([c.status for c in result.comparisons], doubts=doubts)
    row = seen_in(result) if isinstance(bundle, TrainerBundle) else result.row()
    same = all(row[key] == bundle.seen[key] for key in ("status", "first_stage"))
    return {
        "schema_version": 1,
        "candidate": name,
        "case": result.id,
        "verdict": verdict,
        "exit_code": EXIT_CODES[verdict],
        "first_stage": row["first_stage"],
        "note": "; ".join(doubts) or row["note"],
        "replay": "same" if same else "different",
        "seen_then": dict(bundle.seen),
        "comparisons": [
            {
                "stage": c.stage,
                "status": c.status,
                "max_abs": c.max_abs,
                "budget_used": c.budget_used,
                "worst": c.worst,
                "reference": STAGES[c.stage].source,
            }
            for c in result.comparisons
        ],
        "environment": environment,
        "environment_differs": differences(bundle.environment, environment),
    }


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Settings of the environment that changed: then and now."""
    names = [name for name in now if name in then and then[name] != now[name]]
    return {name: [then[name], now[name]] for name in names}


def main(mode: str, request_file: str, result_file: str) -> None:
    """Read the request, do what MODE says, write the result."""
    work = {"make": make, "replay": replay}[mode]

    def done(request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return work(request)
        except (CandidateError, GoldenDataError, BundleError) as error:
            return {"bundles": [], "problem": str(error)}

    answer(request_file, result_file, done)


if __name__ == "__main__":
    main(*sys.argv[1:])
