"""Which arguments a loss function gets, and which cases its shape cannot cover."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from sdpo.parity.candidates.log_prob_functions import FromLogProbs, is_from_log_probs
from sdpo.parity.candidates.loss_functions import FromLogits
from sdpo.parity.cases.checked_call import CandidateError, NotCoveredError
from sdpo.parity.relations.transformed_cases import generated
from tests.helpers import narrow_losses


def mean_gap(student, teacher, tokens, mask):
    return ((student - teacher.detach()).sum(-1) * mask).sum() / mask.sum()


def test_the_four_inputs_come_by_position_whatever_their_names():
    candidate = FromLogits("planted", mean_gap)
    settings: dict[str, Any] = candidate.base_settings
    found = candidate.trace(generated("whole", 1, **settings))
    assert found["aggregate"].dim() == 0
    # ten tokens count: each logit of theirs has a slope of a tenth
    assert found["gradient"][0, 0, 0].item() == pytest.approx(0.1)
    assert found["gradient"][3, 3].abs().sum() == 0


def test_a_setting_without_an_argument_is_covered_at_the_value_that_it_has_alone():
    candidate = FromLogits("planted", narrow_losses.jensen_shannon)
    settings: dict[str, Any] = {"distillation_topk": None, "is_clip": None}
    assert candidate.trace(generated("alpha", 1, alpha=0.5, **settings))
    with pytest.raises(NotCoveredError, match=r"takes no alpha, the case needs alpha=0\.25"):
        candidate.trace(generated("alpha", 1, alpha=0.25, **settings))


def test_what_is_not_implemented_is_not_covered_and_what_torch_lacks_is_an_error():
    def later(student_logits, teacher_logits, responses, response_mask, *, config):
        raise NotImplementedError("sampled tokens come later")

    def on_meta(student_logits, teacher_logits, responses, response_mask, *, config):
        return torch.equal(student_logits.to("meta"), teacher_logits.to("meta"))

    case = generated("any", 1)
    with pytest.raises(NotCoveredError, match="not implemented: sampled tokens come later"):
        FromLogits("later", later).trace(case)
    with pytest.raises(CandidateError, match="NotImplementedError: aten::equal"):
        FromLogits("on meta", on_meta).trace(case)


def test_an_alias_is_a_setting_under_another_name():
    seen = {}

    def loss(student_logits, teacher_logits, responses, response_mask, *, tau, kl_alpha, k):
        seen.update(tau=tau, kl_alpha=kl_alpha, k=k)
        return student_logits.mean()

    case = generated("aliases", 1, distillation_topk=6, alpha=0.25, temperature=0.7)
    candidate = FromLogits("planted", loss)
    # this loss is close to neither
    tail = bool(candidate.assumed.settings["distillation_add_tail"])
    settings = replace(case.config, is_clip=None, distillation_add_tail=tail)
    candidate.trace(replace(case, config=settings))
    assert seen == {"tau": 0.7, "kl_alpha": 0.25, "k": 6}


def test_too_few_arguments_are_no_loss_from_logits():
    with pytest.raises(CandidateError, match="takes 2 arguments by position"):
        FromLogits("planted", lambda student, teacher: student.sum())


def test_a_loss_from_log_probs_is_known_by_the_names_of_its_parameters():
    def loss(student_log_probs, teacher_log_probs, response_mask, config):
        return ((student_log_probs - teacher_log_probs) * response_mask).sum()

    assert is_from_log_probs(loss)
    assert not is_from_log_probs(mean_gap)
    candidate = FromLogProbs("planted", loss)
    with pytest.raises(NotCoveredError, match="takes no student_topk_log_probs"):
        candidate.trace(generated("top-k", 1, distillation_topk=6))
    sampled = generated("sampled", 1, full_logit_distillation=False, alpha=1.0)
    gradient = candidate.trace(sampled)["gradient"]
    # of a log-prob: 1 - p at the sampled token, -p elsewhere, which add up to nothing
    assert torch.allclose(gradient.sum(-1), torch.zeros(4, 4), atol=1e-6)


def test_a_loss_that_hangs_is_an_error_and_soon_not_called_any_more():
    calls = []

    def hangs(student_logits, teacher_logits, responses, response_mask, *, config):
        calls.append(1)
        while True:
            pass

    candidate = FromLogits("hangs", hangs)
    candidate.timeout = 0.1
    case = generated("any", 1)
    for _ in range(2):
        with pytest.raises(CandidateError, match=r"did not return within 0\.1 s"):
            candidate.trace(case)
    made = len(calls)
    with pytest.raises(CandidateError, match="is not called again: 2 calls did not return"):
        candidate.trace(case)
    assert len(calls) == made


@pytest.mark.parametrize("name", ["config", "cfg", "args", "loss_config"])
def test_all_settings_may_arrive_in_one_argument_of_several_names(name):
    scope = {}
    arguments = "student_logits, teacher_logits, responses, response_mask"
    exec(f"def loss({arguments}, {name}):\n    return {name}.alpha * student_logits.mean()", scope)
    found = FromLogits("planted", scope["loss"]).trace(generated("any", 1, alpha=0.25))
    assert found["aggregate"] == 0.25 * generated("any", 1).student_logits.mean()
