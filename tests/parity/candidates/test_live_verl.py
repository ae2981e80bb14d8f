"""The candidate `verl`, here on a stand-in with the fork's names; no checkout is needed."""

import sys
from pathlib import Path

import pytest

from sdpo.parity.audit.audit import audit
from sdpo.parity.audit.request import Request
from sdpo.parity.cases.stages import NAMES
from sdpo.parity.live_fork.checkout import COMMIT
from tests.helpers.family_subset import family_subset

pytestmark = [
    pytest.mark.usefixtures("relations_once"),
    pytest.mark.usefixtures("certificates_once", "budgets_once"),
]
pytest.importorskip("transformers", reason="the recorded models and tokenizer are loaded by it")

LOSS, TRAINER = "trainer/ppo/core_algos", "trainer/ppo/ray_trainer"
ACTOR, FUNCTIONAL = "workers/actor/dp_actor", "utils/torch_functional"
SETTINGS = "workers/config/__init__"


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> str:
    home = tmp_path_factory.mktemp("cases")
    losses = ("P-L001", "P-L030", "P-L041", "P-L047")
    return str(family_subset(home, losses, ("P-R003", "P-R012", "P-R058"), ("P-U002", "P-U013")))


def planted(stand_in, file: str, old: str, new: str) -> Path:
    return stand_in(**{file: (old, new)})


def test_all_sixteen_stages_of_a_checkout_are_run_on_the_recording(stand_in, cases):
    stand_in()
    run = audit(Request("verl", goldens=(cases,)))
    assert run.verdict == "PASS", run.message
    covered = [row.name for row in run.stages if row.status in ("MATCH", "PASS")]
    assert covered == list(NAMES)
    assert run.location is not None
    assert run.location.file.endswith("core_algos.py")
    assert run.stage_locations["teacher_update"].file.endswith("dp_actor.py")
    (note,) = [note for note in run.notes if note.startswith("verl:")]
    assert "without a git repository of its own, commit unknown" in note
    assert f"golden data are of commit {COMMIT[:12]}" in note


@pytest.mark.parametrize(
    ("stage", "file", "old", "new"),
    [
        ("config", SETTINGS, "alpha: float = 0.0", "alpha: float = 0.5"),
        ("feedback", TRAINER, "reference.collect_feedback(infos, rows, settings)", "[None] * rows"),
        ("teacher_tokens", TRAINER, "append_responses(*prompt", "append_responses(*prompt[::-1]"),
        ("log_probs", FUNCTIONAL, "return log_probs", "return 1.1 * log_probs"),
        ("aggregate", LOSS, "return loss.agg_loss(", "return 1.1 * loss.agg_loss("),
        ("accumulate", ACTOR, "(loss * (1 / (size // small)))", "loss"),
        ("teacher_update", ACTOR, "rate = config.teacher_update_rate", "rate = 0.5"),
    ],
)
def test_a_planted_fault_is_named_at_its_stage(stand_in, cases, stage, file, old, new):
    planted(stand_in, file, old, new)
    run = audit(Request("verl", goldens=(cases,)))
    assert (run.verdict, run.first_stage) == ("DIVERGENT", stage), run.message
    assert not run.first_stage_inferred


def test_a_loss_that_bypasses_the_aggregation_is_an_error(stand_in, cases):
    planted(stand_in, LOSS, "total = agg_loss(", "total = loss.agg_loss(")
    run = audit(Request("verl", goldens=(cases,)))
    assert run.verdict == "ERROR"
    assert "called agg_loss 0 times; expected once" in run.message


def test_flash_attention_that_takes_no_cpu_tensors_is_not_used(stand_in, cases, monkeypatch):
    folder = stand_in()
    stub = folder / "flash_attn" / "ops" / "triton"
    stub.mkdir(parents=True)
    for path in (folder / "flash_attn", stub.parent, stub):
        (path / "__init__.py").touch()
    (stub / "cross_entropy.py").write_text(
        "def cross_entropy_loss(logits, labels):\n"
        "    raise RuntimeError('Triton takes no CPU tensors')\n"
    )
    run = audit(Request("verl", goldens=(cases,), stages=("log_probs",)))
    assert run.verdict == "PASS", run.message
    for name in [name for name in sys.modules if name.split(".")[0] == "flash_attn"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        (LOSS, "def compute_self", "def other_self", "another verl than lasgroup/SDPO"),
        (LOSS, "from sdpo", "import absent_pkg\nfrom sdpo", "pip install absent_pkg"),
        (LOSS, "from sdpo", "1 / 0\nfrom sdpo", "failed with ZeroDivisionError"),
    ],
)
def test_what_cannot_be_run_is_an_error_with_a_fix(stand_in, file, old, new, words):
    planted(stand_in, file, old, new)
    run = audit(Request("verl"))
    assert (run.verdict, run.exit_code) == ("ERROR", 2)
    assert words in run.message
    assert "\n" not in run.message
