"""Candidates for the command line's tests: correct ones in several shapes, and broken ones."""

import math
import os
import sys

import torch

CALLS = []


def first(result):
    return result[0] if isinstance(result, tuple) else result


def distributions(logits, support, config):
    scaled = logits / config.temperature
    values = scaled.gather(-1, support) - scaled.logsumexp(-1, keepdim=True)
    mass = values.logsumexp(-1, keepdim=True)
    if not config.distillation_add_tail:
        return values - mass
    return torch.cat([values, torch.log(-torch.expm1(mass.clamp(max=-1e-7)))], dim=-1)


def correct(
    student_logits,
    teacher_logits,
    responses,
    response_mask,
    *,
    old_log_probs=None,
    self_distillation_mask=None,
    rollout_is_weights=None,
    config,
):
    """A loss that was written apart from this project's, with another order of operations."""
    print("a candidate may print")
    width = student_logits.shape[-1]
    scaled = student_logits / config.temperature
    own = scaled.log_softmax(-1).gather(-1, responses[..., None])[..., 0]
    if not config.full_logit_distillation:
        theirs = (teacher_logits.detach() / config.temperature).log_softmax(-1)
        theirs = theirs.gather(-1, responses[..., None])[..., 0]
        loss = (own - theirs).detach() * own
    else:
        if config.distillation_topk is None:
            s = scaled.log_softmax(-1)
            t = (teacher_logits.detach() / config.temperature).log_softmax(-1)
        else:
            support = scaled.topk(min(config.distillation_topk, width)).indices
            s = distributions(student_logits, support, config)
            t = distributions(teacher_logits.detach(), support, config)
        if config.alpha == 0:
            loss = (t.exp() * (t - s)).sum(-1)
        elif config.alpha == 1:
            loss = (s.exp() * (s - t)).sum(-1)
        else:
            a = config.alpha
            m = torch.logaddexp(s + math.log(1 - a), t + math.log(a))
            loss = ((1 - a) * s.exp() * (s - m) + a * t.exp() * (t - m)).sum(-1)
    if config.is_clip is not None:
        ratio = (own - old_log_probs).detach().clamp(-20, 20).exp()
        loss = loss * ratio.clamp(max=config.is_clip)
    if rollout_is_weights is not None:
        loss = loss * rollout_is_weights
    mask = response_mask
    if self_distillation_mask is not None:
        mask = mask * self_distillation_mask[:, None]
    tokens = mask.sum(-1)
    if config.loss_agg_mode == "token-mean":
        return torch.where(mask != 0, loss * mask, 0.0).sum() / tokens.sum().clamp(min=1)
    rows = (loss * mask).sum(-1)
    if config.loss_agg_mode == "seq-mean-token-sum-norm":
        return rows.sum() / mask.shape[-1]
    if config.loss_agg_mode == "seq-mean-token-mean":
        rows = rows / (tokens + 1e-8)
    return rows[tokens > 0].mean(), {"metric": 1.0}


class Loss(torch.nn.Module):
    """The same as a module, its arguments under other names."""

    def forward(self, student, teacher, tokens, mask, **rest):
        return correct(student, teacher, tokens, mask, **rest)


module = Loss()


def raises(*args, **kwargs):
    raise RuntimeError("boom\nand a second line")


def complains_of_an_object(*args, **kwargs):
    raise RuntimeError(f"cannot use {object()}")


def off_by_a_percent(*args, **kwargs):
    return first(correct(*args, **kwargs)) * 1.01


def raises_for_alpha_zero(*args, config, **kwargs):
    if config.alpha == 0:
        raise ValueError("alpha 0 is not implemented")
    return correct(*args, config=config, **kwargs)


def exits(*args, **kwargs):
    sys.exit(0)


def ends_the_process(*args, **kwargs):
    os._exit(0)


def wrong_shape(*args, **kwargs):
    return first(correct(*args, **kwargs))[None]


def per_token(student_logits, *args, **kwargs):
    return student_logits.sum(-1)


def not_a_number(*args, **kwargs):
    return first(correct(*args, **kwargs)) * math.nan


def detached(*args, **kwargs):
    return first(correct(*args, **kwargs)).detach()


def mutates(student, teacher, responses, mask, **rest):
    mask[0, 0] = 0
    return correct(student, teacher, responses, mask, **rest)


def needs_a_package(*args, **kwargs):
    import a_package_that_is_not_there  # type: ignore[import-not-found]

    return a_package_that_is_not_there


def returns_nothing(*args, **kwargs):
    return None


def zero_gradient(student, *args, **kwargs):
    return first(correct(student, *args, **kwargs)).detach() + (student * 0).nan_to_num().sum()


def gradient_times_four(*args, **kwargs):
    loss = first(correct(*args, **kwargs))
    return 4 * loss - 3 * loss.detach()


def teaches_the_teacher(student, teacher, *args, **kwargs):
    leak = 1e-3 * (teacher - teacher.detach()).nan_to_num().sum()
    return first(correct(student, teacher, *args, **kwargs)) + leak


def random_loss(*args, **kwargs):
    return first(correct(*args, **kwargs)) * (1 + 1e-7 * torch.rand((), dtype=torch.float64))


def keeps_state(*args, **kwargs):
    CALLS.append(1)
    return first(correct(*args, **kwargs)) * (1 + 1e-7 * (len(CALLS) > 1))


def no_temperature(student, teacher, *args, config, **kwargs):
    return correct(student, teacher * config.temperature, *args, config=config, **kwargs)


def needs_a_secret(student_logits, teacher_logits, responses, response_mask, secret, config):
    return student_logits.sum()


def takes_one_argument(result):
    return result


number = 3
