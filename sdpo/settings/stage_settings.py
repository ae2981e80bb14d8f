"""The settings of the loss and of the teacher prompt, as plain data under verl's names.

`sdpo.settings.config.SDPOConfig` is both, with the settings of a training beside them, and checks
their rules. A comment behind a field gives its default in the reference's three layers where they
disagree: dataclass / actor.yaml / sdpo.yaml.
"""

from dataclasses import dataclass, fields

from sdpo.settings.rules import DEFAULT_ALPHA, DEFAULT_KL_LOSS_COEF, DEFAULT_REPROMPT_LEN

REPROMPT_TEMPLATE = "{prompt}{solution}{feedback}\n\nCorrectly solve the original question."
SOLUTION_TEMPLATE = "\nCorrect solution:\n\n{successful_previous_attempt}"
FEEDBACK_TEMPLATE = (
    "\nThe following is feedback from your unsuccessful earlier attempt:\n\n{feedback_raw}"
)


@dataclass(frozen=True, kw_only=True)
class LossSettings:
    """What the loss of a token depends on beside tensors."""

    full_logit_distillation: bool = True
    """Compare distributions; False compares the sampled token alone (needs alpha 1)."""
    alpha: float = DEFAULT_ALPHA  # 0.0 / 0.5 / 0.5
    """0: KL(teacher‖student); 1: KL(student‖teacher); between: mixture form."""
    distillation_topk: int | None = 100  # None / 100 / 100
    """K likeliest tokens of the student; None takes the full vocabulary."""
    distillation_add_tail: bool = True
    """Keep the left-over mass as one more entry; False renormalises the K entries."""
    is_clip: float | None = 2.0  # None / 2 / 2
    """Upper limit of the importance ratio; None for no ratio."""
    loss_agg_mode: str = "token-mean"
    """How token losses become one number."""
    temperature: float = 1.0
    """Divides the logits of both sides; the sampling temperature of training."""


@dataclass(frozen=True, kw_only=True)
class PolicySettings:
    """What is added to the loss for every response token, whether a teacher saw it or not."""

    entropy_coeff: float = 0.0
    """Factor of the policy's entropy, which is subtracted from the loss; 0 for no bonus."""
    use_kl_loss: bool = False
    """Add an estimate of KL(policy‖reference policy), the policy that training began with."""
    kl_loss_coef: float = DEFAULT_KL_LOSS_COEF
    """Factor of that estimate."""
    kl_loss_type: str = "low_var_kl"
    """Which estimate it is."""


POLICY_TERMS = tuple(field.name for field in fields(PolicySettings))


@dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """What the teacher is shown, and how long its prompt may be."""

    success_reward_threshold: float = 0.5  # 1.0 / 0.5 / 0.5
    """Smallest summed reward of a successful attempt."""
    dont_reprompt_on_self_success: bool = True  # False / True / True
    """Never show an attempt to itself as a demonstration."""
    remove_thinking_from_demonstration: bool = True  # False / True / True
    """Delete `<think>…</think>` spans from demonstrations."""
    include_environment_feedback: bool = True  # False / True / True
    """Let feedback into the teacher prompt."""
    environment_feedback_only_without_solution: bool = True  # False / True / True
    """Use feedback only where there is no demonstration."""
    max_reprompt_len: int = DEFAULT_REPROMPT_LEN
    """Longest teacher prompt in tokens, chat template included."""
    reprompt_truncation: str = "right"
    """Which end of a longer prompt is cut, or `error`."""
    reprompt_template: str = REPROMPT_TEMPLATE
    """Slots `prompt`, `solution`, `feedback`."""
    solution_template: str = SOLUTION_TEMPLATE
    """Slot `successful_previous_attempt`."""
    feedback_template: str = FEEDBACK_TEMPLATE
    """Slot `feedback_raw`."""
