"""The effect on the gradient: of the right loss none, of a known fault what follows from it."""

import pytest

from sdpo.parity.neighbours.effects import effects_of
from sdpo.reference.loss import loss_from_logits


def reference(student_logits, teacher_logits, responses, response_mask, *, config):
    return loss_from_logits(
        student_logits,
        teacher_logits,
        responses,
        response_mask,
        temperature=config.temperature,
        full_logit_distillation=config.full_logit_distillation,
        distillation_topk=config.distillation_topk,
        distillation_add_tail=config.distillation_add_tail,
        alpha=config.alpha,
    )


def test_the_reference_has_no_effect_at_any_setting():
    effects = list(effects_of(reference))
    assert len(effects) == len({effect.settings for effect in effects}) == 22
    for effect in effects:
        assert (effect.loss, effect.norm, effect.cosine, effect.distance) == (1, 1, 1, 0)


def test_twice_the_negative_loss_is_told_by_sign_and_size():
    for effect in effects_of(lambda *args, **kwargs: -2 * reference(*args, **kwargs)):
        assert (effect.loss, effect.norm) == (-2, 2)
        assert effect.cosine == pytest.approx(-1)
        assert effect.distance == pytest.approx(3)


def test_settings_that_are_refused_are_left_out():
    def sampled_only(*args, config):
        if config.full_logit_distillation:
            raise NotImplementedError
        return reference(*args, config=config)

    assert [effect.settings for effect in effects_of(sampled_only)] == [
        "sampled tokens, alpha 1",
        "sampled tokens, alpha 1, temperature 0.7",
    ]
