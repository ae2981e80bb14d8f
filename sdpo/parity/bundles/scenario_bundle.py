"""A failing scenario of a trainer as one archive, and its replay.

A zip with one member, `scenario.json`: the scenario, what was seen, the candidate's name, the
environment, the command, and a hash of the tiny model's first weights, which come from a seed.
"""

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sdpo.parity.bundles.loss_bundle import EPOCH, BundleError
from sdpo.parity.bundles.shrink_scenario import shrink
from sdpo.parity.compare.verdict import CaseResult
from sdpo.parity.trainers.judge.run_scenarios import TrainerFindings, walked
from sdpo.parity.trainers.processes.training_pool import TrainingPool
from sdpo.parity.trainers.scenarios.scenario import Scenario
from sdpo.parity.trainers.scenarios.scenario_json import ScenarioError, as_json, from_json
from sdpo.parity.trainers.scenarios.tiny_model import tiny_model

VERSION = 1
DOCUMENT = "scenario.json"
LARGEST = 2**20
FIELDS = {"schema_version", "scenario", "candidate", "seen", "shrunk", "environment"} | {
    "command",
    "weights",
}
SEEN = {"status", "first_stage", "note"}


@dataclass(frozen=True)
class TrainerBundle:
    """A scenario and what a trainer did in it; fields as of `bundle.Bundle`.

    `weights` is the SHA-256 of the student's first weights.
    """

    scenario: Scenario
    candidate: str
    seen: Mapping[str, Any]
    shrunk: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    weights: str = ""


def is_trainer_bundle(path: Path) -> bool:
    """Whether a file is an archive with a scenario in it; a damaged one is not."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist() == [DOCUMENT]
    except (OSError, zipfile.BadZipFile):
        return False


def write(path: Path, bundle: TrainerBundle) -> None:
    """Write a bundle; the same bundle gives the same bytes."""
    document = vars(bundle) | {"schema_version": VERSION, "scenario": as_json(bundle.scenario)}
    text = json.dumps(document, ensure_ascii=False, indent=1, default=dict).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        member = zipfile.ZipInfo(DOCUMENT, date_time=EPOCH)
        archive.writestr(member, text, zipfile.ZIP_DEFLATED)


def read(path: Path) -> TrainerBundle:
    """Read a bundle.

    Raises:
        BundleError: too large, damaged, or not in the format.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise BundleError("too large for a bundle of a scenario")
        content = io.BytesIO(path.read_bytes())
        with zipfile.ZipFile(content) as archive, archive.open(DOCUMENT) as member:
            text = member.read(LARGEST + 1)
        if len(text) > LARGEST:
            raise BundleError(f"{DOCUMENT} is larger than {LARGEST >> 20} MiB")
        return bundle_of(json.loads(text))
    except (BundleError, ScenarioError) as error:
        raise BundleError(f"{path}: {error}") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{path} is not in the format of a bundle: {error}") from error
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise BundleError(f"{path} is no zip archive, or damaged: {error}") from error


def bundle_of(document: Any) -> TrainerBundle:
    """The bundle of a document.

    Raises:
        BundleError: a field is missing, unknown or of the wrong kind.
        ScenarioError: the scenario is none.
    """
    if not isinstance(document, dict) or document.keys() != FIELDS:
        raise BundleError(f"{DOCUMENT} must have the fields {sorted(FIELDS)}")
    if document["schema_version"] != VERSION:
        raise BundleError(f"schema_version must be {VERSION}")
    for name in ("candidate", "command", "weights"):
        if not isinstance(document[name], str):
            raise BundleError(f"{name} must be a text")
    if not isinstance(document["seen"], dict) or document["seen"].keys() != SEEN:
        raise BundleError(f"seen must have {sorted(SEEN)}")
    return TrainerBundle(
        scenario=from_json(document["scenario"]),
        candidate=document["candidate"],
        seen=document["seen"],
        shrunk=dict(document["shrunk"]),
        environment=dict(document["environment"]),
        command=document["command"],
        weights=document["weights"],
    )


def judge(candidate: Any, scenario: Scenario) -> CaseResult:
    """What a trainer does in a scenario, in processes of its own."""
    with (
        TrainingPool(candidate, [scenario], twice=False) as apart,
        TemporaryDirectory(prefix="sdpo-trainer-") as folder,
    ):
        return walked(apart, scenario, Path(folder), TrainerFindings(trains=True))[0]


def pack(
    candidate: Any, scenario: Scenario, environment: Mapping[str, Any], command: str
) -> TrainerBundle:
    """A failing scenario, shrunk as far as it fails first at the same stage with that status."""
    seen = wanted = seen_in(judge(candidate, scenario))
    kept = ("status", "first_stage")

    def fails(smaller: Scenario) -> bool:
        nonlocal seen
        found = seen_in(judge(candidate, smaller))
        same = all(found[name] == wanted[name] for name in kept)
        seen = found if same else seen
        return same

    shrunk = shrink(scenario, fails)
    sizes = {"before": size_of(scenario), "after": size_of(shrunk.scenario)}
    return TrainerBundle(
        shrunk.scenario,
        candidate.name,
        seen,
        {**sizes, "tries": max(shrunk.tries, 1)},
        environment,
        command,
        first_weights(shrunk.scenario),
    )


def seen_in(result: CaseResult) -> dict[str, Any]:
    """What a bundle keeps of a result: of stages those that do not follow from earlier ones."""
    own = [c for c in result.comparisons if not c.inherits]
    row = CaseResult(result.id, result.family, result.tags, own, result.note).row()
    return {name: row[name] for name in sorted(SEEN)}


def size_of(scenario: Scenario) -> list[int]:
    """Updates, groups and rows of a scenario."""
    first = scenario.generations[0]
    return [len(scenario.generations), len(first.conversations), len(first.rollouts)]


def first_weights(scenario: Scenario) -> str:
    """SHA-256 of the weights that the tiny model starts from."""
    with TemporaryDirectory(prefix="sdpo-trainer-") as folder:
        model = tiny_model(scenario, Path(folder))
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def smallest_first(failing: Sequence[tuple[Scenario, str]]) -> list[Scenario]:
    """The scenarios to pack: for each first stage the smallest one, then the others."""
    ordered = sorted(failing, key=lambda entry: size_of(entry[0]))
    firsts = {stage: scenario for scenario, stage in reversed(ordered)}
    chosen = [s for s, stage in ordered if firsts[stage] is s]
    return [*chosen, *(s for s, stage in ordered if firsts[stage] is not s)]
