"""A fault planted in each module of our maths is caught, and the first stage is named right."""

import pytest
import torch

from sdpo.fixtures import packaged_family
from sdpo.loss import aggregate, divergence, importance, self_distillation, support
from sdpo.parity.candidates.implementations import Own
from sdpo.parity.cases.loss_case import loss_case
from sdpo.parity.cases.stages import first_in_order
from sdpo.parity.compare.evaluated_case import evaluate_case
from sdpo.parity.compare.loss_stages import compare_loss
from sdpo.parity.compare.statuses import FAILING, Status

FAMILY = packaged_family("loss")
SOME = ("P-L002", "P-L005", "P-L014", "P-L018", "P-L027", "P-L038", "P-L046", "P-L145", "P-L146")


def first_stage() -> str | None:
    """The first stage of ours that diverges or has a wrong shape, over some recorded cases."""
    found = set()
    for case_id in SOME:
        evaluated = evaluate_case(loss_case(FAMILY.case(case_id)))
        comparisons = compare_loss(evaluated, Own().trace(evaluated.case))
        found |= {c.stage for c in comparisons if c.status in FAILING}
    return first_in_order(found)


def without_temperature(side, responses):
    return support.log_probs(side.logits, responses)


def off_by_one(side, responses):
    return support.log_probs(side, responses).roll(1, dims=-1)


def teachers_choice(student, teacher, **settings):
    indices, theirs, ours = support.support(teacher, student, **settings)
    return support.Support(indices, ours, theirs)


def one_entry_less(student, teacher, *, distillation_topk=None):
    topk = None if distillation_topk is None else max(distillation_topk - 1, 1)
    return support.support(student, teacher, distillation_topk=topk)


def never_a_tail(log_probs, *, distillation_add_tail=True):
    return support.tail(log_probs, distillation_add_tail=False)


def nothing_done(log_probs, *, distillation_add_tail=True):
    return log_probs


def swapped(student, teacher, *, alpha):
    return divergence.divergence(teacher, student, alpha=alpha)


def other_end(student, teacher, *, alpha):
    return divergence.divergence(student, teacher, alpha=1 - alpha)


def slightly_more(student, teacher, *, alpha):
    return divergence.divergence(student, teacher, alpha=alpha) * (1 + 1e-3)


def negative(student_log_probs, teacher_log_probs):
    return -divergence.sampled_token_divergence(student_log_probs, teacher_log_probs)


def without_ratio(per_token_loss, **settings):
    return importance.importance(per_token_loss, **{**settings, "is_clip": None})


def without_weights(per_token_loss, **settings):
    return importance.importance(per_token_loss, **{**settings, "rollout_is_weights": None})


def per_row_over_all_rows(per_token_loss, loss_mask, *, loss_agg_mode="token-mean"):
    value = aggregate.aggregate(per_token_loss, loss_mask, loss_agg_mode=loss_agg_mode)
    return value * (loss_mask.sum(-1) > 0).sum().clamp(min=1) / len(loss_mask)


def padded_width(per_token_loss, loss_mask, *, loss_agg_mode="token-mean"):
    return (per_token_loss * loss_mask).nan_to_num().sum() / loss_mask.numel()


def half_the_gradient(per_token_loss, loss_mask, *, loss_agg_mode="token-mean"):
    value = aggregate.aggregate(per_token_loss, loss_mask, loss_agg_mode=loss_agg_mode)
    return 0.5 * value + 0.5 * value.detach()


@pytest.mark.parametrize(
    ("name", "fault", "stage"),
    [
        ("log_probs", without_temperature, "log_probs"),
        ("log_probs", off_by_one, "log_probs"),
        ("support", teachers_choice, "support"),
        ("support", one_entry_less, "support"),
        ("tail", never_a_tail, "tail"),
        ("tail", nothing_done, "tail"),
        ("divergence", swapped, "divergence"),
        ("divergence", other_end, "divergence"),
        ("divergence", slightly_more, "divergence"),
        ("sampled_token_divergence", negative, "divergence"),
        ("importance", without_ratio, "importance"),
        ("importance", without_weights, "importance"),
        ("aggregate", per_row_over_all_rows, "aggregate"),
        ("aggregate", padded_width, "aggregate"),
        ("aggregate", half_the_gradient, "gradient"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_planted_fault_is_named_at_its_stage(name, fault, stage, monkeypatch):
    monkeypatch.setattr(self_distillation, name, fault)
    assert first_stage() == stage


def test_nothing_is_found_where_nothing_is_planted():
    assert first_stage() is None


def test_a_constant_in_a_module_matters(monkeypatch):
    """M06: the tail without its limit is not finite where the top-k holds all the mass."""
    monkeypatch.setattr(support, "LARGEST_LOG_MASS", 0.0)
    evaluated = evaluate_case(loss_case(FAMILY.case("P-L087")))
    trace = Own().trace(evaluated.case)
    assert not torch.isfinite(trace["tail.student"]).all()
    comparisons = compare_loss(evaluated, trace)
    assert first_in_order({c.stage for c in comparisons if c.status == Status.DIVERGENT}) == "tail"
