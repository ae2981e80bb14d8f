"""The candidate `verl`: a live checkout of the fork, here a stand-in package with its names.

The stand-in passes the transcription's functions on under the fork's names and form of settings;
a real checkout was not available where these tests are run.
"""

import sys
from dataclasses import replace

import pytest

from sdpo.parity.audit.audit import audit
from sdpo.parity.audit.request import Request
from sdpo.parity.candidates.live_verl import COMMIT, LiveVerl
from sdpo.parity.faults.catalogue import BY_ID
from sdpo.parity.render.html import html_report
from sdpo.parity.render.markdown import markdown_report
from sdpo.parity.render.text import text_report
from tests.helpers.golden_subset import SOME
from tests.helpers.recorded.canaries import loss_has_recorded_bits

pytestmark = [
    pytest.mark.usefixtures("relations_once"),
    pytest.mark.usefixtures("certificates_once", "budgets_once"),
]

CORE_ALGOS = """
from sdpo.reference import loss

def agg_loss(loss_mat, loss_mask, loss_agg_mode, batch_num_tokens=None):
    return loss.agg_loss(loss_mat, loss_mask, loss_agg_mode, batch_num_tokens)

def compute_self_distillation_loss(
    student_log_probs, teacher_log_probs, response_mask, self_distillation_config,
    old_log_probs=None, student_all_log_probs=None, teacher_all_log_probs=None,
    student_topk_log_probs=None, teacher_topk_log_probs=None, self_distillation_mask=None,
    loss_agg_mode="token-mean", rollout_is_weights=None,
):
    config, values = self_distillation_config, {}
    names = ("full_logit_distillation", "alpha", "distillation_topk", "distillation_add_tail")
    loss.compute_self_distillation_loss(
        student_log_probs=student_log_probs, teacher_log_probs=teacher_log_probs,
        response_mask=response_mask, old_log_probs=old_log_probs,
        student_all_log_probs=student_all_log_probs, teacher_all_log_probs=teacher_all_log_probs,
        student_topk_log_probs=student_topk_log_probs,
        teacher_topk_log_probs=teacher_topk_log_probs,
        self_distillation_mask=self_distillation_mask, rollout_is_weights=rollout_is_weights,
        loss_agg_mode=loss_agg_mode, is_clip=config.get("is_clip", None), trace=values,
        **{name: getattr(config, name) for name in names},
    )
    total = agg_loss(
        loss_mat=values["per_token_loss"], loss_mask=values["loss_mask"],
        loss_agg_mode=loss_agg_mode, batch_num_tokens=values["batch_num_tokens"],
    )
    return total, {}
"""
TORCH_FUNCTIONAL = """
from sdpo.reference.loss import log_probs_from_logits

def logprobs_from_logits(logits, labels, inplace_backward=True):
    return log_probs_from_logits(logits, labels)
"""


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Writes a stand-in checkout with replaced texts, and puts it on the path."""

    def write(core=("", ""), functional=("", "")):
        for folder in ("verl", "verl/trainer", "verl/trainer/ppo", "verl/utils"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "__init__.py").touch()
        sources = {
            "verl/trainer/ppo/core_algos.py": (CORE_ALGOS, core),
            "verl/utils/torch_functional.py": (TORCH_FUNCTIONAL, functional),
        }
        for path, (text, (old, new)) in sources.items():
            assert old in text
            (tmp_path / path).write_text(text.replace(old, new) if old else text)

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    yield write
    for name in [n for n in sys.modules if n.split(".")[0] == "verl"]:
        del sys.modules[name]


def statuses(run) -> dict[str, str]:
    return {row.name: row.status for row in run.stages if row.status != "NOT_COVERED"}


def test_a_checkout_is_run_on_the_recording(checkout, goldens):
    checkout()
    run = audit(Request("verl", goldens=(str(goldens),)))
    assert run.verdict == "PASS", run.message
    covered = dict.fromkeys(("log_probs", "importance", "aggregate", "gradient"), "MATCH")
    if all(map(loss_has_recorded_bits, SOME)):
        assert statuses(run) == covered, "the transcription reproduces the recording bit for bit"
    assert statuses(run).keys() == covered.keys()
    assert run.location is not None
    assert run.location.file.endswith("core_algos.py")
    assert run.stage_locations["log_probs"].file.endswith("torch_functional.py")
    assert any(f"golden data are of commit {COMMIT[:12]}" in note for note in run.notes)


@pytest.mark.parametrize(
    ("core", "functional", "stage", "inferred", "fault"),
    [
        (
            ("loss_mat, loss_mask, loss_agg_mode, batch_num_tokens)",
             "loss_mat, loss_mask, MODES.get(loss_agg_mode, loss_agg_mode), batch_num_tokens)\n"
             "MODES = {'token-mean': 'seq-mean-token-mean'}"),
            ("", ""), "aggregate", False, "M08",
        ),
        (
            ('is_clip=config.get("is_clip", None)', "is_clip=None"),
            ("", ""), "importance", True, "M",
        ),
        (("", ""), ("(logits, labels)\n", "(logits * 1.01, labels)\n"), "log_probs", False, None),
        (("", ""), ("(logits, labels)\n", "(logits, labels.roll(1, 1))\n"), "log_probs", False,
         "M38"),
        (("return total, {}", "return total.detach() + 0.5 * (total - total.detach()), {}"),
         ("", ""), "gradient", True, "M"),
    ],
    ids=["aggregate", "importance", "log_probs", "one token late", "gradient"],
)  # fmt: skip
def test_a_planted_fault_is_found_at_its_stage(
    checkout, goldens, core, functional, stage, inferred, fault
):
    checkout(core, functional)
    run = audit(Request("verl", goldens=(str(goldens),)))
    check_first(run, stage, inferred=inferred)
    assert fault is None or any(name.startswith(fault) for name in run.explained_by)


def check_first(run, stage, *, inferred):
    """The stage is the first by all accounts, and no sentence speaks of a callable's one number."""
    assert run.verdict == "DIVERGENT", run.message
    found = run.first_stage, run.first_stage_inferred, run.first_observed
    assert found == (stage, inferred, stage)
    for report in (markdown_report(run), html_report(run), text_report(run)):
        assert "returns only a scalar" not in report
    assert ("shows only `log_probs`, `importance`" in markdown_report(run)) == inferred


def test_a_fault_before_the_log_probs_is_explained(checkout, goldens, monkeypatch):
    real = LiveVerl.trace

    def without_temperature(self, case):
        return real(self, replace(case, config=replace(case.config, temperature=1.0)))

    monkeypatch.setattr(LiveVerl, "trace", without_temperature)
    checkout()
    run = audit(Request("verl", goldens=(str(goldens),)))
    check_first(run, "log_probs", inferred=False)
    assert run.explained_by == [BY_ID["M34"].label]


def test_a_loss_that_bypasses_agg_loss_is_an_error(checkout, goldens):
    checkout(core=("total = agg_loss(", "total = loss.agg_loss("))
    run = audit(Request("verl", goldens=(str(goldens),)))
    assert run.verdict == "ERROR"
    assert "called agg_loss 0 times; expected once" in run.message


@pytest.mark.parametrize(
    ("core", "words"),
    [
        (("def compute_self_distillation_loss", "def other"), "another verl than lasgroup/SDPO"),
        (
            ("from sdpo.reference", "import absent_pkg\nfrom sdpo.reference"),
            "needs the package 'absent_pkg'",
        ),
        (("from sdpo.reference", "1 / 0\nfrom sdpo.reference"), "failed with ZeroDivisionError"),
        (None, "no checkout of verl found"),
    ],
)
def test_what_cannot_be_run_is_an_error_with_a_fix(checkout, core, words):
    if core is not None:
        checkout(core)
    run = audit(Request("verl"))
    assert (run.verdict, run.exit_code) == ("ERROR", 2)
    assert words in run.message
    assert "PYTHONPATH=SDPO sdpo audit verl" in run.message or "install" in run.message
