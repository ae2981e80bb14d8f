"""What is required follows from the golden data given and from what the candidate claims."""

import json
from pathlib import Path

import msgspec
import pytest

from sdpo.fixtures import PACKAGED
from sdpo.parity.audit.audit import audit
from sdpo.parity.audit.request import Request
from sdpo.parity.candidates.implementations import Own
from sdpo.parity.cases.stages import NAMES, PROMPT_STAGES
from sdpo.parity.recorded import updates
from sdpo.parity.report.rejudge import policy_of, regate
from sdpo.parity.report.run_report import RunReport
from tests.helpers.report_schema import assert_valid

HERE = Path(__file__).parents[2] / "helpers" / "candidates.py"
IDS = {
    "loss": ("P-L001", "P-L018", "P-L030", "P-L146"),
    "reprompt": ("P-R001", "P-R002"),
    "update": ("P-U001", "P-U003"),
}
LOSS = NAMES[6:13]
BY_UPDATE = {"log_probs", "support", "importance", "aggregate", *NAMES[13:]}
SHOWN = {
    "loss": set(LOSS),
    "reprompt": {"config", *PROMPT_STAGES},
    "update": BY_UPDATE,
}

pytestmark = pytest.mark.usefixtures("relations_once")


def folder(home: Path, family: str, ids) -> Path:
    """Some cases of a packaged family."""
    home.mkdir(parents=True, exist_ok=True)
    manifest = json.loads((PACKAGED / family / "cases.json").read_text(encoding="utf-8"))
    manifest["cases"] = [entry for entry in manifest["cases"] if entry["id"] in ids]
    assert len(manifest["cases"]) == len(ids)
    for path in (PACKAGED / family).iterdir():
        if path.name != "cases.json" and not (home / path.name).exists():
            (home / path.name).symlink_to(path)
    (home / "cases.json").write_text(json.dumps(manifest), encoding="utf-8")
    return home


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("families")
    return {family: str(folder(home / family, family, ids)) for family, ids in IDS.items()}


def audited(candidate, *goldens, **changes):
    run = audit(Request(candidate, goldens=goldens, **changes))
    assert_valid(run)
    assert regate(run, policy_of(run)) == run
    return run


@pytest.mark.parametrize("candidate", ["sdpo", "reference"])
@pytest.mark.parametrize(
    "families",
    ["loss", "reprompt", "update", "loss update", "loss reprompt", "reprompt update"],
)
def test_what_was_compared_is_what_the_golden_data_hold(candidate, families, folders):
    run = audited(candidate, *(folders[name] for name in families.split()))
    assert run.verdict in ("PASS", "DECLARED"), run.reasons
    shown = set().union(*(SHOWN[name] for name in families.split()))
    shown -= {"config"} if candidate == "reference" else set()
    assert set(run.coverage.covered) == shown
    assert set(run.beyond_goldens or []) == set(run.claims) - shown
    (note,) = [note for note in run.notes if note.startswith("not required")]
    assert all(stage in note for stage in run.beyond_goldens or [])


def test_with_all_families_everything_claimed_is_required(folders):
    run = audited("sdpo", *folders.values())
    assert run.verdict in ("PASS", "DECLARED")
    assert (run.beyond_goldens, run.coverage.not_covered) == ([], [])


def test_a_stage_that_no_case_reaches_is_not_required(tmp_path):
    """Sampled tokens have no support, whole vocabularies no tail."""
    run = audited("sdpo", str(folder(tmp_path / "a" / "loss", "loss", ("P-L037",))))
    assert run.verdict == "PASS", run.reasons
    assert {"support", "tail"} <= set(run.beyond_goldens or [])


@pytest.mark.parametrize(
    ("family", "method", "stage"),
    [
        ("loss", "trace", "divergence"),
        ("update", "compare_update", "accumulate"),
        ("reprompt", "config", "config"),
    ],
)
def test_what_the_golden_data_hold_stays_required(family, method, stage, folders, monkeypatch):
    trace = Own.trace
    if method == "trace":
        monkeypatch.setattr(
            Own,
            method,
            lambda self, case: {n: v for n, v in trace(self, case).items() if n != "divergence"},
        )
    elif method == "config":
        monkeypatch.setattr(Own, "config_results", lambda self, family: [])
    else:
        monkeypatch.setattr(updates, method, lambda *sides: [])
    run = audited("sdpo", folders[family])
    assert (run.verdict, run.exit_code) == ("INCONCLUSIVE", 3)
    assert f"stage {stage} was not covered" in run.reasons
    assert stage not in run.beyond_goldens


def test_what_the_user_requires_is_required_whatever_is_given(folders):
    run = audited("sdpo", folders["loss"], require=("config",))
    assert (run.verdict, run.reasons) == ("INCONCLUSIVE", ["stage config was not covered"])


@pytest.mark.parametrize("family", ["reprompt", "update"])
def test_a_loss_on_golden_data_without_a_loss_is_no_pass(family, folders):
    run = audited(f"{HERE}:correct", folders[family])
    assert (run.verdict, run.exit_code) == ("INCONCLUSIVE", 3)
    assert run.reasons[-1] == "nothing was compared"


def test_a_report_that_does_not_say_it_is_judged_by_its_families(folders):
    run = audited("sdpo", folders["loss"])
    document = msgspec.to_builtins(run)
    del document["beyond_goldens"]
    old = msgspec.convert(document, RunReport)
    assert regate(old, policy_of(old)).verdict == run.verdict == "PASS"
