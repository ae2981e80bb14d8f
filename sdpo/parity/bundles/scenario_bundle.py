"""A failing scenario of a trainer as one archive, and its replay.

The archive has one member, `scenario.json`: the scenario, what was seen, the candidate's name, the
environment, the command, and a hash of the tiny model's first weights, which come from a seed.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from sdpo.parity.bundles.archive import (
    BundleDocument,
    BundleError,
    Shrunk,
    document_bytes,
    member_names,
    read_archive,
    read_document,
    write_archive,
)
from sdpo.parity.bundles.shrink_scenario import shrink_scenario
from sdpo.parity.compare.verdict import CaseResult
from sdpo.parity.report.report_context import Environment, Seen
from sdpo.parity.trainers.judge.run_scenarios import follow
from sdpo.parity.trainers.processes.training_pool import TrainingPool
from sdpo.parity.trainers.recording.adapter_base import TrainerAdapter
from sdpo.parity.trainers.scenarios.scenario import Scenario
from sdpo.parity.trainers.scenarios.scenario_json import ScenarioError, as_json, from_json
from sdpo.parity.trainers.scenarios.tiny_model import tiny_model

DOCUMENT = "scenario.json"
LARGEST = {DOCUMENT: 2**20}


class ScenarioDocument(BundleDocument, frozen=True):
    """The scenario as JSON; `weights` is the SHA-256 of the student's first weights."""

    scenario: Any
    weights: str


@dataclass(frozen=True)
class ScenarioBundle:
    """A scenario and what a trainer did in it."""

    scenario: Scenario
    document: ScenarioDocument


def is_scenario_bundle(path: Path) -> bool:
    """Tell whether a file is an archive with a scenario in it; a damaged one is not."""
    return member_names(path) == [DOCUMENT]


def write(path: Path, bundle: ScenarioBundle) -> None:
    """Write a bundle; the same bundle gives the same bytes."""
    write_archive(path, {DOCUMENT: document_bytes(bundle.document)})


def read(path: Path) -> ScenarioBundle:
    """Read a bundle.

    Raises:
        BundleError: too large, damaged, or not in the format.
    """
    data = read_archive(path, LARGEST)[DOCUMENT]
    document = read_document(path, data, ScenarioDocument)
    try:
        return ScenarioBundle(from_json(document.scenario), document)
    except ScenarioError as error:
        raise BundleError(f"{path}: {error}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{path} is not in the format of a bundle: {error}") from error


def run_scenario(candidate: TrainerAdapter, scenario: Scenario) -> CaseResult:
    """Judge what a trainer does in a scenario, in processes of its own."""
    with (
        TrainingPool(candidate, [scenario], twice=False) as pool,
        TemporaryDirectory(prefix="sdpo-trainer-") as folder,
    ):
        return follow(pool, scenario, Path(folder), trains=True)[0]


def pack(
    candidate: TrainerAdapter,
    scenario: Scenario,
    name: str,
    environment: Environment,
    command: str,
) -> ScenarioBundle:
    """Shrink a failing scenario as far as its first stage and status stay, and pack it.

    Args:
        candidate: a trainer that fails in the scenario.
        scenario: the one that it fails in.
        name: what the user calls the candidate.
        environment: of the audit.
        command: that repeats the audit.
    """
    seen = wanted = seen_in(run_scenario(candidate, scenario))

    def fails(smaller: Scenario) -> bool:
        nonlocal seen
        now = seen_in(run_scenario(candidate, smaller))
        same = (now.status, now.first_stage) == (wanted.status, wanted.first_stage)
        seen = now if same else seen
        return same

    smallest, tries = shrink_scenario(scenario, fails)
    document = ScenarioDocument(
        schema_version=1,
        candidate=name,
        seen=seen,
        shrunk=Shrunk(size_of(scenario), size_of(smallest), max(tries, 1)),
        environment=msgspec.to_builtins(environment),
        command=command,
        scenario=as_json(smallest),
        weights=first_weights(smallest),
    )
    return ScenarioBundle(smallest, document)


def seen_in(result: CaseResult) -> Seen:
    """Keep of a result what a bundle says: stages that do not follow from earlier ones."""
    introduced = [c for c in result.comparisons if not c.inherits]
    row = CaseResult(result.id, result.family, result.tags, introduced, result.note).row()
    return Seen(row["status"], row["first_stage"], row["note"])


def size_of(scenario: Scenario) -> list[int]:
    """Count the updates, groups and rows of a scenario."""
    first = scenario.generations[0]
    return [len(scenario.generations), len(first.conversations), len(first.rollouts)]


def first_weights(scenario: Scenario) -> str:
    """Compute the SHA-256 of the weights that the tiny model starts from."""
    with TemporaryDirectory(prefix="sdpo-trainer-") as folder:
        model = tiny_model(scenario, Path(folder))
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def smallest_first(failing: Sequence[tuple[Scenario, str]]) -> list[Scenario]:
    """Order scenarios for packing: for each first stage the smallest one, then the others."""
    ordered = sorted(failing, key=lambda entry: size_of(entry[0]))
    firsts = {stage: scenario for scenario, stage in reversed(ordered)}
    chosen = [s for s, stage in ordered if firsts[stage] is s]
    return [*chosen, *(s for s, stage in ordered if firsts[stage] is not s)]
