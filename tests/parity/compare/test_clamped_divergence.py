"""A divergence clamped at zero and other forms of the tail: correct programs, and faults near."""

import math

import pytest
import torch

from sdpo.parity.audit.run_loss_cases import judge_loss_case
from sdpo.parity.candidates.loss_functions import FromLogits
from sdpo.parity.cases.loss_case import LossCase
from sdpo.parity.faults.evaluate_fault import loss_from_logits
from sdpo.parity.faults.reference_parts import divergence as plain
from sdpo.parity.faults.tail import each_side_by, with_tail_entry
from sdpo.reference.loss import renormalize
from sdpo.settings.config import SDPOConfig
from tests.helpers.fault_harness import run_of, some_cases

NEAR_ITS_LIMIT = ("P-L095", "P-L097", "P-L103", "P-L105")


def nearly_the_teacher(alpha, apart=1e-4, rows=3, dtype=torch.float32, seed=5, **settings):
    """Sides so close that rounding decides the sign of most tokens' divergence."""
    generator = torch.Generator().manual_seed(seed)
    student = 2 * torch.randn(rows, 4, 32, generator=generator)
    teacher = student + apart * torch.randn(rows, 4, 32, generator=generator)
    return LossCase(
        id=f"near, alpha {alpha}",
        config=SDPOConfig.from_dict(
            {"alpha": alpha, "distillation_topk": None, "is_clip": None} | settings
        ),
        student_logits=student.to(dtype),
        teacher_logits=teacher.to(dtype),
        responses=torch.zeros(rows, 4, dtype=torch.int64),
        response_mask=torch.ones(rows, 4, dtype=torch.int64),
    )


def kl(p, q):
    return (p.exp() * (p - q)).sum(-1)


def clamped(run):
    return plain(run).clamp(min=0)


def each_clamped(run):
    """The mixture form, each of its two divergences clamped."""
    student, teacher, alpha = run.student_support, run.teacher_support, run.config.alpha
    if alpha in (0.0, 1.0):
        return clamped(run)
    mixture = torch.logaddexp(student + math.log(1 - alpha), teacher + math.log(alpha))
    own, other = kl(student, mixture).clamp(min=0), kl(teacher, mixture).clamp(min=0)
    return (1 - alpha) * own + alpha * other


def judged(part, case):
    candidate = FromLogits("port.py:loss", loss_from_logits({"divergence": part}))
    return judge_loss_case(candidate, case)


def vanishing(part, case):
    """How many tokens have no gradient."""
    candidate = FromLogits("port.py:loss", loss_from_logits({"divergence": part}))
    return int((candidate.trace(case)["gradient"] == 0).all(-1).sum())


@pytest.mark.parametrize("part", [clamped, each_clamped])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("k", [None, 8])
def test_a_clamp_acts_where_rounding_does_and_is_no_fault(part, alpha, k):
    case = nearly_the_teacher(alpha, distillation_topk=k)
    gradients = [
        FromLogits("", loss_from_logits({"divergence": p})).trace(case)["gradient"]
        for p in (part, plain)
    ]
    assert not torch.equal(*gradients), "the clamp acts"
    assert gradients[0].any()
    assert judged(part, case).status in ("MATCH", "PASS")


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_clamps_of_many_random_cases_are_no_fault(alpha):
    for seed in range(20):
        for k in (None, 8):
            case = nearly_the_teacher(alpha, seed=seed, distillation_topk=k)
            for part in (clamped, each_clamped):
                assert judged(part, case).status in ("MATCH", "PASS"), (seed, k, part.__name__)


def test_a_token_whose_divergence_is_more_than_rounding_keeps_its_gradient():
    """The same clamp a little above zero is a fault, and so is no gradient at all."""
    case = nearly_the_teacher(1.0, apart=3e-2)

    def floored(run):
        value = plain(run)
        return value.clamp(min=float(value.detach().median()))

    def silent(run):
        return plain(run).detach() + 0 * run.student_support.sum(-1)

    for part in (floored, silent):
        assert vanishing(part, case) > 0
        assert judged(part, case).status == "DIVERGENT"
    tiny = nearly_the_teacher(1.0)
    assert judged(silent, tiny).status == "DIVERGENT", "zero throughout never passes"


def test_other_tokens_are_judged_as_ever_beside_one_at_a_clamp():
    case = nearly_the_teacher(1.0)

    def one_doubled(run):
        value = clamped(run)
        kept = int((plain(run).detach() > 0).flatten().nonzero()[0])
        factor = torch.ones_like(value)
        factor.view(-1)[kept] = 2
        return value.detach() + factor * (value - value.detach())

    assert vanishing(clamped, case) > 0
    assert judged(clamped, case).status == "PASS"
    assert judged(one_doubled, case).status == "DIVERGENT"


def by_subtraction(limit):
    """The tail as log of one minus the mass, its limit written in the mass left over."""

    def tail(log_probs):
        mass = log_probs.double().exp().sum(-1, keepdim=True)
        return with_tail_entry(log_probs, (1 - mass).clamp(min=limit).log().to(log_probs.dtype))

    return FromLogits("tail", loss_from_logits({"tail": each_side_by(tail, renormalize)}))


def test_the_limit_of_the_tail_may_be_one_of_its_mass():
    """1e-7 of the mass and of the log mass agree to first order; another limit is a fault."""
    for limit in (1e-7, -math.expm1(-1e-7)):
        run = run_of(by_subtraction(limit), some_cases(NEAR_ITS_LIMIT))
        assert run.verdict == "PASS", (limit, run.cases)
    for limit in (1.00001e-7, 0.99999e-7, 2e-7):
        run = run_of(by_subtraction(limit), some_cases(NEAR_ITS_LIMIT))
        assert run.verdict == "DIVERGENT", limit
