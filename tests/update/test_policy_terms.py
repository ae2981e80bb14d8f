"""Entropy bonus and KL anchor, by hand and against the definition."""

import math

import pytest
import torch

from sdpo.reference.forward import entropy_from_logits
from sdpo.reference.update import low_var_kl
from sdpo.settings.config import SDPOConfig
from sdpo.update.policy_terms import PolicyTerms, entropy_of, low_variance_kl, policy_terms

B, T, V = 2, 3, 5
RESPONSES = torch.tensor([[0, 1, 2], [3, 4, 0]])
MASK = torch.tensor([[1, 1, 0], [1, 0, 0]])
BOTH = SDPOConfig(entropy_coeff=0.5, use_kl_loss=True, kl_loss_coef=2.0, temperature=0.5)


def random_logits(seed: int = 0) -> torch.Tensor:
    return torch.randn(B, T, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_entropy_of_equal_logits_is_the_log_of_their_number():
    assert entropy_of(torch.zeros(V)).item() == pytest.approx(math.log(V))
    assert entropy_of(torch.tensor([0.0, 0.0, -torch.inf])).item() == pytest.approx(math.log(2))


def test_an_impossible_token_gets_a_gradient_of_zero():
    logits = torch.tensor([1.0, 0.0, -torch.inf], requires_grad=True)
    entropy_of(logits).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[2] == 0


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_entropy_and_estimate_are_those_of_the_transcription(temperature):
    logits, other = random_logits(), random_logits(1)
    expected = entropy_from_logits(logits / temperature)
    torch.testing.assert_close(entropy_of(logits, temperature=temperature), expected)
    ours, theirs = (40 * side.log_softmax(-1)[..., 0] for side in (logits, other))
    torch.testing.assert_close(low_variance_kl(ours, theirs), low_var_kl(ours, theirs))


def test_the_mean_of_the_estimate_is_the_divergence_from_the_reference_policy():
    policy, reference = (random_logits(seed)[0, 0].log_softmax(-1) for seed in (0, 1))
    of_each_token = low_variance_kl(policy, reference)
    divergence = (policy.exp() * (policy - reference)).sum()
    assert (policy.exp() * of_each_token).sum().item() == pytest.approx(divergence.item())


def test_the_estimate_is_limited():
    far = low_variance_kl(torch.tensor([0.0, -30.0]), torch.tensor([-30.0, 0.0]))
    assert far.tolist() == [10.0, 10.0]


def test_nothing_is_computed_unless_asked_for():
    assert policy_terms(random_logits(), RESPONSES, MASK, config=SDPOConfig()) == PolicyTerms()
    loss = torch.tensor(3.0)
    assert PolicyTerms().added_to(loss, SDPOConfig()) is loss


def test_both_terms_are_means_over_the_response_tokens():
    logits, reference = random_logits(), -torch.rand(B, T, dtype=torch.float64)
    logits[MASK == 0] = torch.nan
    reference[MASK == 0] = torch.nan
    logits.requires_grad_(True)
    terms = policy_terms(logits, RESPONSES, MASK, ref_log_prob=reference, config=BOTH)
    places = [(0, 0), (0, 1), (1, 0)]
    sides = [(logits[p] / 0.5).log_softmax(-1) for p in places]
    entropies = [-(side.exp() * side).sum() for side in sides]
    estimates = [
        low_variance_kl(side[RESPONSES[p]], reference[p])
        for side, p in zip(sides, places, strict=True)
    ]
    assert terms.entropy is not None
    assert terms.kl_loss is not None
    torch.testing.assert_close(terms.entropy, torch.stack(entropies).mean())
    torch.testing.assert_close(terms.kl_loss, torch.stack(estimates).mean())
    total = terms.added_to(torch.tensor(1.0, dtype=torch.float64), BOTH)
    torch.testing.assert_close(total, 1 - 0.5 * terms.entropy + 2 * terms.kl_loss)
    (gradient,) = torch.autograd.grad(total, logits)
    assert gradient.isfinite().all()
    assert (gradient[MASK == 0] == 0).all()


@pytest.mark.parametrize("mode", ["seq-mean-token-sum", "seq-mean-token-sum-norm"])
def test_the_terms_are_aggregated_as_the_loss_is(mode):
    logits = torch.zeros(B, T, V)
    config = SDPOConfig(entropy_coeff=1.0, loss_agg_mode=mode)
    terms = policy_terms(logits, RESPONSES, MASK, config=config)
    assert terms.entropy is not None
    expected = math.log(V) * {"seq-mean-token-sum": 3 / 2, "seq-mean-token-sum-norm": 3 / 3}[mode]
    assert terms.entropy.item() == pytest.approx(expected)


def test_an_anchor_without_its_log_probs_is_refused():
    with pytest.raises(ValueError, match="needs ref_log_prob"):
        policy_terms(random_logits(), RESPONSES, MASK, config=BOTH)
