"""Faults of the stages `log_probs`, `support` and `tail`."""

from collections.abc import Callable

import torch
from torch import Tensor

from sdpo.parity.faults_parts import Fault, Pair, Part, Run, divergence, scaled, support
from sdpo.reference.loss import add_tail, log_probs_from_logits, renormalize, topk_log_probs

Sides = Callable[[Tensor], Tensor]


def teacher_one_late(run: Run) -> Pair:
    """The teacher's rows belong to the token before."""
    student, teacher = scaled(run)
    return student, teacher.roll(1, dims=1)


def both_one_late(run: Run) -> Pair:
    """Both sides' rows belong to the token before."""
    student, teacher = scaled(run)
    return student.roll(1, dims=1), teacher.roll(1, dims=1)


def labels_one_late(run: Run) -> Pair:
    """The log-probs are those of the token before."""
    labels = run.responses.roll(1, dims=1)
    return (
        log_probs_from_logits(run.student, labels),
        log_probs_from_logits(run.teacher, labels),
    )


def in_precision(dtype: torch.dtype) -> dict[str, Part]:
    """Log-softmax in a lower precision on both sides, sampled tokens and support."""

    def low(logits: Tensor) -> Tensor:
        return logits.to(dtype).log_softmax(-1).to(logits.dtype)

    def sampled(run: Run) -> Pair:
        at = run.responses.unsqueeze(-1)
        return (
            low(run.student).gather(-1, at).squeeze(-1),
            low(run.teacher).gather(-1, at).squeeze(-1),
        )

    def on_support(run: Run) -> Pair:
        student, teacher = low(run.student), low(run.teacher)
        if not run.topk:
            return student, teacher
        return student.gather(-1, run.indices), teacher.gather(-1, run.indices)

    return {"log_probs": sampled, "support": on_support}


def teachers_choice(run: Run) -> Tensor:
    """The teacher's top-k."""
    return topk_log_probs(run.teacher, run.count)[1]


def choice_of(change: int) -> Part:
    """The student's top-k with K changed by `change`."""

    def other_count(run: Run) -> Tensor:
        count = min(max(run.count + change, 1), run.student.size(-1))
        return topk_log_probs(run.student, count)[1]

    return other_count


def everything(run: Run) -> Tensor:
    """The whole vocabulary, in the student's order."""
    return topk_log_probs(run.student, run.student.size(-1))[1]


def own_support(run: Run) -> Pair:
    """Each side on its own top-k."""
    student, _ = support(run)
    return student, topk_log_probs(run.teacher, run.count)[0] if run.topk else support(run)[1]


def union_support(run: Run) -> Pair:
    """Entries that are in neither side's top-k get a negligible probability."""
    if not run.topk:
        return support(run)
    inside = torch.zeros_like(run.student, dtype=torch.bool)
    for side in (run.student, run.teacher):
        inside = inside.scatter(-1, side.topk(run.count, dim=-1).indices, True)
    inside = inside.gather(-1, run.indices)
    student, teacher = support(run)
    return student.masked_fill(~inside, -1e4), teacher.masked_fill(~inside, -1e4)


def closed_support(run: Run) -> Pair:
    """Log-softmax over the K entries instead of the vocabulary."""
    student, teacher = support(run)
    return (renormalize(student), renormalize(teacher)) if run.topk else (student, teacher)


def support_without_temperature(run: Run) -> Pair:
    """The support's log-probs from logits before temperature."""
    student, teacher = run.student, run.teacher
    run.student, run.teacher = run.student_logits, run.teacher_logits.detach()
    found = support(run)
    run.student, run.teacher = student, teacher
    return found


def normalizer_without_gradient(run: Run) -> Pair:
    """The gradient reaches the chosen logits, not their normaliser."""
    student, teacher = support(run)
    raw = run.student.gather(-1, run.indices) if run.topk else run.student
    # Infinite logits have no difference; their gradient is left as it is.
    straight = torch.where(raw.isfinite(), raw - raw.detach(), 0.0)
    return student.detach() + straight, teacher


def untouched(run: Run) -> Pair:
    """Neither tail nor renormalisation."""
    return run.student_on, run.teacher_on


def clamped_sum(run: Run) -> Tensor:
    """The divergence, at least 0."""
    return divergence(run).clamp(min=0)


def on_each(with_tail: Sides, without_tail: Sides) -> Part:
    """One function of the log-probs for both sides; which one depends on the setting."""

    def complete(run: Run) -> Pair:
        function = with_tail if run.config.distillation_add_tail else without_tail
        return function(run.student_on), function(run.teacher_on)

    return complete


def on_tail(change: Callable[[Tensor, Tensor], Pair]) -> Part:
    """Both sides changed together where a tail is asked, renormalised elsewhere."""

    def complete(run: Run) -> Pair:
        if run.config.distillation_add_tail:
            return change(run.student_on, run.teacher_on)
        return renormalize(run.student_on), renormalize(run.teacher_on)

    return complete


def on_renormalized(change: Callable[[Tensor, Tensor], Pair]) -> Part:
    """Both sides changed together where renormalising is asked, tails elsewhere."""

    def complete(run: Run) -> Pair:
        if run.config.distillation_add_tail:
            return add_tail(run.student_on), add_tail(run.teacher_on)
        return change(run.student_on, run.teacher_on)

    return complete


def with_rest(log_probs: Tensor, log_rest: Tensor) -> Tensor:
    """Log-probs with a last entry."""
    return torch.cat([log_probs, log_rest], dim=-1)


def tail_without_limit(log_probs: Tensor) -> Tensor:
    """The tail of an unlimited mass."""
    log_mass = log_probs.logsumexp(-1, keepdim=True)
    return with_rest(log_probs, torch.log(-torch.expm1(log_mass)))


def tail_by_subtraction(log_probs: Tensor) -> Tensor:
    """The tail as log1p of minus the sum, unlimited."""
    return with_rest(log_probs, torch.log1p(-log_probs.exp().sum(-1, keepdim=True)))


def tail_with_limit(limit: float, gradient: str = "none") -> Sides:
    """The tail with another limit; `gradient` `passed` lets it through where the limit holds."""

    def complete(log_probs: Tensor) -> Tensor:
        log_mass = log_probs.logsumexp(-1, keepdim=True)
        limited = log_mass.clamp(max=-limit)
        if gradient == "passed":
            limited = limited.detach() + (log_mass - log_mass.detach())
        return with_rest(log_probs, torch.log(-torch.expm1(limited)))

    return complete


def tail_without_gradient(log_probs: Tensor) -> Tensor:
    """The tail without gradient."""
    return with_rest(log_probs, add_tail(log_probs)[..., -1:].detach())


def one_tail(student: Tensor, teacher: Tensor) -> Pair:
    """The student's tail on both sides."""
    student = add_tail(student)
    return student, with_rest(teacher, student[..., -1:].detach())


def closed_tail(log_probs: Tensor) -> Tensor:
    """A tail after renormalising: what is left is the limit."""
    return add_tail(renormalize(log_probs))


LOW = "in that precision, or a lower one, the reference rounds just as much"

LOG_PROBS = (
    Fault(
        "M14",
        "teacher one token late",
        "mask",
        "log_probs",
        "WrinkleFree #13",
        {"scaled": teacher_one_late},
    ),
    Fault(
        "M31",
        "temperature not applied to the teacher",
        "precision / scaling",
        "log_probs",
        "design",
        {"scaled": lambda run: (scaled(run)[0], run.teacher_logits.detach())},
    ),
    Fault(
        "M32",
        "log-softmax in bfloat16",
        "precision / scaling",
        "log_probs",
        "design",
        in_precision(torch.bfloat16),
        inactive=LOW,
    ),
    Fault(
        "M33",
        "temperature not applied to the student",
        "precision / scaling",
        "log_probs",
        "design",
        {"scaled": lambda run: (run.student_logits, scaled(run)[1])},
    ),
    Fault(
        "M34",
        "temperature not applied",
        "precision / scaling",
        "log_probs",
        "design",
        {"scaled": lambda run: (run.student_logits, run.teacher_logits.detach())},
    ),
    Fault(
        "M35",
        "logits multiplied by the temperature",
        "precision / scaling",
        "log_probs",
        "design",
        {
            "scaled": lambda run: (
                run.student_logits * run.config.temperature,
                run.teacher_logits.detach() * run.config.temperature,
            )
        },
    ),
    Fault(
        "M36",
        "log-softmax in float16",
        "precision / scaling",
        "log_probs",
        "design",
        in_precision(torch.float16),
        inactive=LOW,
    ),
    Fault(
        "M37",
        "both sides one token late",
        "mask",
        "log_probs",
        "WrinkleFree #13",
        {"scaled": both_one_late},
    ),
    Fault(
        "M38",
        "sampled token one late",
        "mask",
        "log_probs",
        "design",
        {"log_probs": labels_one_late},
    ),
)

SUPPORT = (
    Fault(
        "M04",
        "teacher's top-k as support",
        "support",
        "support",
        "Open-AgentRL #10",
        {"choice": teachers_choice},
    ),
    Fault("M39", "K one too large", "support", "support", "design", {"choice": choice_of(+1)}),
    Fault("M40", "K one too small", "support", "support", "design", {"choice": choice_of(-1)}),
    Fault(
        "M41",
        "each side on its own top-k",
        "support",
        "support",
        "design",
        {"support": own_support},
    ),
    Fault(
        "M42",
        "union of both sides' top-k",
        "support",
        "support",
        "design",
        {"choice": everything, "support": union_support},
    ),
    Fault(
        "M43",
        "support normalised over its K entries",
        "support",
        "support",
        "design",
        {"support": closed_support},
        inactive="renormalising later gives the same result",
    ),
    Fault(
        "M44",
        "temperature missing in the support",
        "precision / scaling",
        "support",
        "design",
        {"support": support_without_temperature},
    ),
    Fault(
        "M45",
        "top-k ignored, full vocabulary",
        "support",
        "support",
        "design",
        {"choice": everything},
    ),
)

TAIL = (
    Fault(
        "M05",
        "top-k without renormalisation or tail, clamped at 0",
        "tail",
        "tail",
        "verl #7856",
        {"tail": untouched, "divergence": clamped_sum},
    ),
    Fault(
        "M06",
        "tail without its limit",
        "tail",
        "tail",
        "CLaaS #1",
        {"tail": on_each(tail_without_limit, renormalize)},
        inactive="shows only where the tail is below 1e-7",
    ),
    Fault(
        "M06b",
        "tail by log1p(-sum), without its limit",
        "tail",
        "tail",
        "CLaaS #1",
        {"tail": on_each(tail_by_subtraction, renormalize)},
        inactive="shows only where the tail is below 1e-7",
    ),
    Fault(
        "M46",
        "limit of the tail at 1e-3",
        "tail",
        "tail",
        "design",
        {"tail": on_each(tail_with_limit(1e-3), renormalize)},
    ),
    Fault(
        "M47",
        "tail on the student only",
        "tail",
        "tail",
        "design",
        {"tail": on_tail(lambda s, t: (add_tail(s), closed_tail(t)))},
    ),
    Fault(
        "M48",
        "tail on the teacher only",
        "tail",
        "tail",
        "design",
        {"tail": on_tail(lambda s, t: (closed_tail(s), add_tail(t)))},
    ),
    Fault(
        "M49",
        "tail after renormalising",
        "tail",
        "tail",
        "design",
        {"tail": on_each(closed_tail, renormalize)},
    ),
    Fault(
        "M50",
        "renormalised instead of a tail",
        "tail",
        "tail",
        "design",
        {"tail": on_each(renormalize, renormalize)},
    ),
    Fault(
        "M51",
        "tail instead of renormalising",
        "tail",
        "tail",
        "design",
        {"tail": on_each(add_tail, add_tail)},
    ),
    Fault(
        "M52",
        "student's tail on both sides",
        "tail",
        "tail",
        "design",
        {"tail": on_tail(one_tail)},
    ),
    Fault(
        "M53",
        "teacher not renormalised",
        "tail",
        "tail",
        "design",
        {"tail": on_renormalized(lambda s, t: (renormalize(s), t))},
    ),
    Fault(
        "M54",
        "student not renormalised",
        "tail",
        "tail",
        "design",
        {"tail": on_renormalized(lambda s, t: (s, renormalize(t)))},
    ),
)

GRADIENT = (
    Fault(
        "M99",
        "stop-gradient on the tail",
        "gradient",
        "gradient",
        "design",
        {"tail": on_each(tail_without_gradient, renormalize)},
    ),
    Fault(
        "M100",
        "gradient passes the tail's limit",
        "gradient",
        "gradient",
        "design",
        {"tail": on_each(tail_with_limit(1e-7, "passed"), renormalize)},
        inactive="shows only where the tail is below 1e-7",
    ),
    Fault(
        "M101",
        "no gradient through the normaliser",
        "gradient",
        "gradient",
        "design",
        {"support": normalizer_without_gradient},
    ),
)
