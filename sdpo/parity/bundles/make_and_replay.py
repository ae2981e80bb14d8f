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

import msgspec

from sdpo.fixtures import GoldenDataError
from sdpo.parity.audit.audit import load_goldens
from sdpo.parity.audit.child_process import Crash, answer
from sdpo.parity.audit.launch import BundlesMade, BundlesRequest
from sdpo.parity.audit.load_candidate import load_candidate
from sdpo.parity.audit.rejudge_and_replay import (
    ReplayedComparison,
    ReplayRequest,
    ReplayResult,
)
from sdpo.parity.audit.run_loss_cases import SEEDS, judge_loss_case, run_loss_case
from sdpo.parity.bundles.archive import BundleError, Shrunk
from sdpo.parity.bundles.loss_bundle import LossBundle, LossDocument, read, write
from sdpo.parity.bundles.scenario_bundle import (
    ScenarioBundle,
    first_weights,
    is_scenario_bundle,
    pack,
    run_scenario,
    seen_in,
    size_of,
    smallest_first,
)
from sdpo.parity.bundles.scenario_bundle import read as read_scenario
from sdpo.parity.bundles.scenario_bundle import write as write_scenario
from sdpo.parity.bundles.shrink_case import shrink_case
from sdpo.parity.candidates.loss_functions import LossFunction
from sdpo.parity.cases.checked_call import CandidateError
from sdpo.parity.cases.loss_case import LOSS_SETTINGS, LossCase, loss_cases
from sdpo.parity.cases.stages import STAGES
from sdpo.parity.compare.statuses import FAILING, Status
from sdpo.parity.compare.verdict import CaseResult, run_verdict
from sdpo.parity.generated.make_case import is_generated, make_again
from sdpo.parity.report.environment import describe_environment
from sdpo.parity.report.report_context import Environment, Seen
from sdpo.parity.report.report_rows import BundleRow
from sdpo.parity.trainers.recording.adapter_base import TrainerAdapter
from sdpo.parity.trainers.scenarios.catalogue import SCENARIOS
from sdpo.runtime.json_values import json_safe
from sdpo.settings.determinism import deterministic

_Signature = frozenset[tuple[str, str, str]]


def failure_signature(result: CaseResult) -> _Signature:
    """Say in which way a case fails: at which stages, and what effect or error each shows."""
    return frozenset(
        (c.stage, c.status, c.effect if c.status != Status.ERROR else c.note.partition(":")[0])
        for c in result.comparisons
        if c.status in FAILING
    )


def make(request: BundlesRequest) -> BundlesMade:
    """Make bundles of the failing cases with the smallest inputs."""
    with deterministic(SEEDS[0]) as settings:
        candidate = load_candidate(request.candidate)
        environment = describe_environment(settings, SEEDS)
        if isinstance(candidate, TrainerAdapter):
            return BundlesMade(_of_scenarios(candidate, request, environment))
        if isinstance(candidate, LossFunction):
            return BundlesMade(_of_loss_cases(candidate, request, environment))
        return BundlesMade([])


def _of_loss_cases(
    candidate: LossFunction, request: BundlesRequest, environment: Environment
) -> list[BundleRow]:
    families = [f for f in load_goldens(request.goldens) if f.name == "loss"]
    cases = [case for family in families for case in loss_cases(family)]
    failing = [case for case in cases if case.id in dict(request.cases)]
    failing += [make_again(name) for name, _ in request.cases if is_generated(name)]
    failing.sort(key=lambda case: case.student_logits.numel())
    rows = []
    for case in failing[: request.count]:
        bundle = _bundle_of(candidate, case, environment, request.command)
        file = Path(request.folder) / (re.sub(r"[^\w.-]+", "-", case.id) + ".zip")
        write(file, bundle)
        rows.append(_row(case.id, file, bundle.document.shrunk))
    return rows


def _of_scenarios(
    candidate: TrainerAdapter, request: BundlesRequest, environment: Environment
) -> list[BundleRow]:
    stages = dict(request.cases)
    failing = [
        (scenario, stages[scenario.id] or "") for scenario in SCENARIOS if scenario.id in stages
    ]
    rows = []
    for scenario in smallest_first(failing)[: request.count]:
        bundle = pack(candidate, scenario, request.candidate, environment, request.command)
        file = Path(request.folder) / f"{scenario.id}.zip"
        write_scenario(file, bundle)
        rows.append(_row(scenario.id, file, bundle.document.shrunk))
    return rows


def _row(case: str, file: Path, shrunk: Shrunk) -> BundleRow:
    return BundleRow(case, f"bundles/{file.name}", shrunk.before, shrunk.after, shrunk.tries)


def _bundle_of(
    candidate: LossFunction, case: LossCase, environment: Environment, command: str
) -> LossBundle:
    """Shrink a failing case as far as it fails in the same way, and pack it.

    A case that does not fail without the values that were recorded with it stays as it is.
    """
    wanted = failure_signature(judge_loss_case(candidate, case))

    def fails(smaller: LossCase) -> bool:
        return failure_signature(judge_loss_case(candidate, smaller)) == wanted

    bare = replace(case, recorded={})
    smallest, tries = case, 1
    if fails(bare):
        smallest, shrinking_tries = shrink_case(bare, fails)
        tries += shrinking_tries
    row = judge_loss_case(candidate, smallest).row()
    before, after = (list(each.student_logits.shape) for each in (case, smallest))
    document = LossDocument(
        schema_version=1,
        candidate=candidate.name,
        seen=Seen(row["status"], row["first_stage"], row["note"]),
        shrunk=Shrunk(before, after, tries),
        environment=msgspec.to_builtins(environment),
        command=command,
        case=smallest.id,
        config={name: getattr(smallest.config, name) for name in LOSS_SETTINGS},
        tags=list(smallest.tags),
        call=smallest.call,
    )
    return LossBundle(smallest, document)


def replay(request: ReplayRequest) -> ReplayResult:
    """Run the case of a bundle again, with the bundle's own candidate or another one."""
    path = Path(request.bundle)
    if is_scenario_bundle(path):
        return _replay_scenario(read_scenario(path), request.candidate)
    return _replay_loss(read(path), request.candidate)


def _replay_loss(bundle: LossBundle, candidate: str) -> ReplayResult:
    name = candidate or bundle.document.candidate
    with deterministic(SEEDS[0]) as settings:
        environment = describe_environment(settings, SEEDS)
        loss = load_candidate(name)
        if not isinstance(loss, LossFunction):
            raise CandidateError(
                "config", f"{name} is no loss function; this bundle replays only these"
            )
        run = run_loss_case(loss, bundle.case)
    result, doubts = run.result, run.doubts
    row = result.row()
    now = Seen(row["status"], row["first_stage"], "; ".join(doubts) or row["note"])
    rows, tokens, vocabulary = bundle.case.student_logits.shape
    size = f"{rows} rows, {tokens} tokens, {vocabulary} entries of the vocabulary"
    return _result(name, bundle, result, now, doubts, environment, size)


def _replay_scenario(bundle: ScenarioBundle, candidate: str) -> ReplayResult:
    name = candidate or bundle.document.candidate
    with deterministic(SEEDS[0]) as settings:
        environment = describe_environment(settings, SEEDS)
        adapter = load_candidate(name)
        if not isinstance(adapter, TrainerAdapter):
            raise CandidateError("config", f"{name} is no trainer; this bundle holds a scenario")
        result = run_scenario(adapter, bundle.scenario)
        weights = first_weights(bundle.scenario)
    updates, groups, rows = size_of(bundle.scenario)
    size = f"updates: {updates}, groups: {groups}, rows: {rows}"
    replayed = _result(name, bundle, result, seen_in(result), [], environment, size)
    if weights != bundle.document.weights:
        replayed.environment_differs["first weights"] = (bundle.document.weights, weights)
    return replayed


def _result(
    name: str,
    bundle: LossBundle | ScenarioBundle,
    result: CaseResult,
    now: Seen,
    doubts: list[str],
    environment: Environment,
    size: str,
) -> ReplayResult:
    """Put the verdict of now beside that of then.

    Args:
        name: of the candidate.
        bundle: what was seen then.
        result: what was measured now.
        now: what a bundle would keep of it.
        doubts: why it cannot be trusted.
        environment: of now.
        size: of the case, for a reader.
    """
    then = bundle.document.seen
    verdict = run_verdict([c.status for c in result.comparisons], doubts=doubts)
    same = (now.status, now.first_stage) == (then.status, then.first_stage)
    comparisons = [
        {
            "stage": c.stage,
            "status": c.status,
            "max_abs": c.max_abs,
            "budget_used": c.budget_used,
            "worst": c.worst,
            "reference": STAGES[c.stage].source,
        }
        for c in result.comparisons
    ]
    return ReplayResult(
        schema_version=1,
        candidate=name,
        case=result.id,
        verdict=verdict,
        exit_code=verdict.exit_code,
        first_stage=now.first_stage,
        note=now.note,
        replay="same" if same else "different",
        seen_then=then,
        comparisons=msgspec.convert(json_safe(comparisons), list[ReplayedComparison]),
        environment=environment,
        environment_differs=_differences(
            bundle.document.environment, msgspec.to_builtins(environment)
        ),
        size=size,
    )


def _differences(
    then: Mapping[str, object], now: Mapping[str, object]
) -> dict[str, tuple[object, object]]:
    """List the settings of the environment that changed: then and now."""
    names = [name for name in now if name in then and then[name] != now[name]]
    return {name: (then[name], now[name]) for name in names}


def main(mode: str, request_file: str, result_file: str) -> None:
    """Read the request, do what MODE says, write the result."""
    if mode == "make":
        answer(request_file, result_file, BundlesRequest, _made)
    else:
        answer(request_file, result_file, ReplayRequest, _replayed)


def _made(request: BundlesRequest) -> BundlesMade:
    try:
        return make(request)
    except (CandidateError, GoldenDataError) as error:
        return BundlesMade([], str(error))


def _replayed(request: ReplayRequest) -> ReplayResult | Crash:
    try:
        return replay(request)
    except (CandidateError, BundleError) as error:
        return Crash(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
