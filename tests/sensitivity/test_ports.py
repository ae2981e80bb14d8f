"""Losses as third parties write them, with one line changed: the verdict, and the first stage.

The ports in `ports/` share nothing with this project. Each edit is a text and what replaces it.
"""

import sys
from pathlib import Path
from typing import Any

import pytest

from sdpo.fixtures import packaged_family
from sdpo.parity.audit.load_candidate import load_candidate
from sdpo.parity.compare.comparison import Comparison
from sdpo.parity.compare.nondeterminism import withdrawn
from sdpo.parity.compare.statuses import Status
from sdpo.parity.compare.verdict import CaseResult
from tests.helpers.fault_harness import run_of, some_cases

PORTS = Path(__file__).parent / "ports"
MIXTURE = "torch.logaddexp(p + math.log1p(-alpha), q + math.log(alpha))"
CORRECT = {
    "functional": [
        "",
        "x.detach().amax(-1 -> x.amax(-1",
        "d.sum() / n.sum().clamp(min=1) -> (d / n.sum().clamp(min=1)).sum()",
    ],
    "packed": [
        "",
        "return loss, { -> return loss.float(), {",
        "inside.expm1().neg().log() -> torch.log1p(-inside.double().exp()).to(inside.dtype)",
    ],
    "from_log_probs": ["", "-adv * student_log_probs -> -(student_log_probs * adv)"],
}
FAULTY = [
    ("functional", f"{MIXTURE} -> torch.logaddexp(p, q)", "divergence", "M03"),
    ("functional", f"{MIXTURE} -> torch.log(p.exp() + q.exp() + 1e-8)", "divergence", ""),
    ("functional", "d = kl(q, p) -> d = kl(p, q)", "divergence", "M01"),
    ("functional", "descending=True -> descending=False", "support", ""),
    (
        "functional",
        "argsort(x, dim=-1, descending=True, stable=True)[..., :topk] -> "
        "topk(x, min(topk, x.shape[-1]), largest=False).indices",
        "support",
        "M136",
    ),
    ("functional", "descending=True -> descending=add_tail", "support", ""),
    ("functional", "[..., :topk] -> [..., : min(topk, x.shape[-1] - 1)]", "support", "M137"),
    ("functional", "d = kl(q, p) -> d = kl(q, p).clamp(max=10)", "divergence", "M138"),
    ("functional", "d = kl(q, p) -> d = kl(q, p).clamp(max=7)", "divergence", ""),
    ("functional", "with_tail(p), with_tail(q) -> p, q", "tail", "M05b"),
    ("functional", "x = student_logits * -> x = student_logits.clamp(-50, 50) *", "log_probs", ""),
    ("functional", "y = teacher_logits.detach() -> y = teacher_logits", "gradient", "M21b"),
    ("functional", ".clip(-20, 20) -> .clip(-10, 10)", "importance", "M124"),
    (
        "functional",
        "(d * w).masked_fill -> (2 * d.detach() - d).mul(w).masked_fill",
        "gradient",
        "",
    ),
    ("packed", "min(config.distillation_topk, -> min(config.distillation_topk - 1,", "support", ""),
    ("packed", "max=-1e-7 -> max=-1e-8", "tail", "M119"),
    ("packed", "upcast(teacher / -> upcast(teacher.half() /", "log_probs", ""),
    ("packed", "not config.full -> config.is_clip is None and not config.full", "divergence", ""),
    (
        "packed",
        "loss = values.mean() -> loss = values.sum() / response_mask.sum()",
        "aggregate",
        "",
    ),
    ("packed", "p, q, alpha = log_a.exp() -> p, q, alpha = log_a.detach().exp()", "gradient", ""),
    (
        "from_log_probs",
        "x - x.logsumexp(-1, keepdim=True) -> x - x.exp().sum(-1, True).log()",
        "tail",
        "M120",
    ),
    ("from_log_probs", "if alpha == 1 else -> if alpha == 0 else", "divergence", "M01"),
    ("from_log_probs", "nseq = (ntok > 0).sum() -> nseq = (ntok >= 0).sum()", "aggregate", "M07"),
    ("from_log_probs", "/ mask.size(1) -> / ntok.max().clamp(min=1)", "aggregate", "M85"),
    (
        "from_log_probs",
        "* rollout_is_weights -> * rollout_is_weights.clamp(max=1)",
        "importance",
        "M126",
    ),
]
QUICK = 7
FEW = 5


def audited(folder: Path, port: str, edit: str, every: int = 1):
    """The audit of a changed port, on every n-th of the recorded cases."""
    source = (PORTS / f"{port}.py").read_text(encoding="utf-8")
    if edit:
        old, new = edit.split(" -> ")
        assert old in source
        source = source.replace(old, new)
    file = folder / f"changed_{port}.py"
    file.write_text(source, encoding="utf-8")
    try:
        candidate: Any = load_candidate(f"{file}:loss")
        ids = tuple(case["id"] for case in packaged_family("loss").manifest["cases"])
        return run_of(candidate, some_cases(ids[::every]))
    finally:
        sys.path.remove(str(folder))
        del sys.modules[file.stem]


def marked(entries, quick):
    """Each entry on all cases with the slow tests, and a few on a few cases always."""
    slow = [pytest.param(*entry, 1, marks=pytest.mark.slow) for entry in entries]
    return [(*entry, FEW) for entry in entries[::quick]] + slow


@pytest.mark.parametrize(
    ("port", "edit", "every"), marked([(p, e) for p, edits in CORRECT.items() for e in edits], 3)
)
def test_a_correct_port_passes(tmp_path, port, edit, every):
    run = audited(tmp_path, port, edit, every)
    assert run.verdict in ("PASS", "DECLARED"), (run.message, run.stages)


@pytest.mark.parametrize(("port", "edit", "stage", "fault", "every"), marked(FAULTY, QUICK))
def test_a_faulty_port_is_located(tmp_path, port, edit, stage, fault, every):
    run = audited(tmp_path, port, edit, every)
    assert (run.verdict, run.first_stage) == ("DIVERGENT", stage)
    named = [label.split()[0] for label in run.explained_by]
    assert fault in named if fault else True


def test_a_fault_in_one_branch_is_named_with_its_setting(tmp_path):
    run = audited(tmp_path, "functional", "d = kl(q, p) -> d = kl(p, q)", every=FEW)
    assert "M01 KL direction swapped at alpha 0 and 1, only with alpha 0" in run.explained_by


SCATTERED = {
    "noise": "w = torch.ones_like(d) -> w = 1 + 1e-3 * torch.rand_like(d)",
    "dropout": "x = student_logits * -> x = torch.dropout(student_logits, 0.1, True) *",
    "a counter": "rows = (n > 0) -> d = d * (1 + 1e-3 * (len(self.__dict__.setdefault('c', [])) "
    "> 2)) + 0 * bool(self.c.append(1)); rows = (n > 0)",
}


@pytest.mark.parametrize("kind", SCATTERED)
def test_a_candidate_that_differs_from_itself_is_not_called_divergent(tmp_path, kind):
    run = audited(tmp_path, "functional", SCATTERED[kind], FEW)
    assert run.verdict == "INCONCLUSIVE"
    assert "two runs of case" in run.message


def test_a_departure_far_beyond_the_scatter_stays_divergent():
    def case(error):
        worst = {"actual": 1.0 + error, "expected": 1.0, "budget": 1e-6}
        found = Comparison(
            "aggregate", Status.DIVERGENT, "c", 1, error, worst=worst, effect="value"
        )
        return CaseResult("c", "loss", comparisons=[found])

    small, large = withdrawn([case(5e-3), case(0.5)], [{"aggregate": 1e-3}, {}])
    assert (small.status, large.status) == ("NOT_COVERED", "DIVERGENT")
    assert withdrawn([case(5e-3)], [{}])[0].status == "DIVERGENT"
    assert withdrawn([case(5e-3)], [{"gradient": 1.0}])[0].status == "DIVERGENT"
