"""Faults of the stages `log_probs` and `support`."""

import torch
from torch import Tensor

from sdpo.parity.faults.reference_parts import Fault, Pair, Part, Run, scaled, support
from sdpo.reference.loss import log_probs_from_logits, renormalize, topk_log_probs


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


def in_precision(dtype: torch.dtype, *, teacher_only: bool = False) -> dict[str, Part]:
    """Log-softmax in a lower precision on both sides or one, sampled tokens and support."""

    def low(logits: Tensor) -> Tensor:
        return logits.to(dtype).log_softmax(-1).to(logits.dtype)

    def own(logits: Tensor) -> Tensor:
        return logits.log_softmax(-1) if teacher_only else low(logits)

    def sampled(run: Run) -> Pair:
        at = run.responses.unsqueeze(-1)
        return (
            own(run.student).gather(-1, at).squeeze(-1),
            low(run.teacher).gather(-1, at).squeeze(-1),
        )

    def on_support(run: Run) -> Pair:
        student, teacher = own(run.student), low(run.teacher)
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

GRADIENT = (
    Fault(
        "M101",
        "no gradient through the normaliser",
        "gradient",
        "gradient",
        "design",
        {"support": normalizer_without_gradient},
    ),
)
