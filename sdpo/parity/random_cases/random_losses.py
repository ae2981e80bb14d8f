"""Random losses from logits: dtypes, shapes, masks, weights and all settings of the loss.

Not varied: several ranks, flash-attention's cross entropy, which takes no CPU tensors.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sdpo.parity.live_fork.losses import LiveLoss, live_loss, support_of
from sdpo.parity.live_fork.rollout_weights import live_rollout_weights
from sdpo.parity.random_cases.chance import FLOATS, MASKS, Chance
from sdpo.reference.loss import LOSS_AGG_MODES, loss_from_logits, rollout_is_weights

Values = dict[str, Tensor]
Sampler = tuple[Tensor, float]
"""The sampler's log-probs `(B, T)` and the threshold, of which rollout weights are made."""


@dataclass(frozen=True)
class DistillationSettings:
    """Settings of the loss under the fork's names."""

    full_logit_distillation: bool
    alpha: float
    distillation_topk: int | None
    distillation_add_tail: bool
    is_clip: float | None


@dataclass(frozen=True)
class RandomLoss:
    """A loss case; shapes as in `sdpo.parity.live_fork.losses.LossInputs`."""

    settings: DistillationSettings
    temperature: float
    loss_agg_mode: str
    student_logits: Tensor = field(repr=False)
    teacher_logits: Tensor = field(repr=False)
    responses: Tensor = field(repr=False)
    response_mask: Tensor = field(repr=False)
    old_log_probs: Tensor | None = field(repr=False)
    self_distillation_mask: Tensor | None = field(repr=False)
    rollout_is_weights: Tensor | None = field(repr=False)
    sampler: Sampler | None = field(repr=False)

    def described(self) -> str:
        """Settings, dtypes and shape, on one line."""
        dtypes = [t.dtype for t in (self.student_logits, self.teacher_logits, self.response_mask)]
        return f"{self!r} {tuple(self.student_logits.shape)} {dtypes}"

    def fork(self) -> Values:
        """Values of the fork, from the forward pass to the gradient."""
        given = self
        if self.sampler is not None:
            assert self.old_log_probs is not None
            weights, _ = live_rollout_weights(self.old_log_probs, *self.sampler, self.response_mask)
            given = replace(self, rollout_is_weights=weights)
        leaf = given.student_logits.clone().requires_grad_(True)
        live = live_loss(
            replace(given, student_logits=leaf),
            vars(self.settings),
            temperature=self.temperature,
            loss_agg_mode=self.loss_agg_mode,
        )
        assert isinstance(live.loss, Tensor)
        values = fork_values(live) | {"loss": live.loss}
        if given.rollout_is_weights is not None:
            values["rollout_is_weights"] = given.rollout_is_weights
        return with_gradient(values, leaf)

    def transcribed(self) -> Values:
        """Values of the transcription, under the same names."""
        weights = self.rollout_is_weights
        if self.sampler is not None:
            assert self.old_log_probs is not None
            log_probs, threshold = self.sampler
            weights = rollout_is_weights(
                self.old_log_probs, log_probs, self.response_mask, threshold
            )
        leaf, values = self.student_logits.clone().requires_grad_(True), {}
        loss_from_logits(
            leaf,
            self.teacher_logits,
            self.responses,
            self.response_mask,
            temperature=self.temperature,
            loss_agg_mode=self.loss_agg_mode,
            old_log_probs=self.old_log_probs,
            self_distillation_mask=self.self_distillation_mask,
            rollout_is_weights=weights,
            trace=values,
            **vars(self.settings),
        )
        if weights is not None:
            values["rollout_is_weights"] = weights
        if self.settings.distillation_topk is None:
            # what the fork's divergence is taken of is known of a top-k support alone
            values = {n: v for n, v in values.items() if not n.endswith("_support")}
        return with_gradient(values, leaf)


def fork_values(live: LiveLoss) -> Values:
    """Values of the fork's loss under the transcription's names."""
    values = {
        "divergence": live.divergence,
        "per_token_loss": live.per_token_loss,
        "loss_mask": live.loss_mask,
    }
    if isinstance(live.batch_num_tokens, Tensor):
        values["batch_num_tokens"] = live.batch_num_tokens
    for side, outputs in (("student", live.student), ("teacher", live.teacher)):
        values[f"{side}_log_probs"] = outputs["log_probs"]
        if support := support_of(outputs):
            values[f"{side}_{support[0]}_log_probs"] = support[1]
    if "topk_indices" in live.student:
        values["student_topk_indices"] = live.student["topk_indices"]
        values["student_support"], values["teacher_support"] = live.support
    return values


def with_gradient(values: Values, leaf: Tensor) -> Values:
    """The values without their graphs, and the gradient of the loss by the logits."""
    (gradient,) = torch.autograd.grad(values["loss"], leaf)
    return {name: value.detach() for name, value in values.items()} | {"gradient": gradient}


def random_loss(seed: int) -> RandomLoss:
    """The loss case of a seed."""
    chance = Chance("loss", seed)
    rows, tokens = chance.between(1, 6), chance.between(1, 12)
    vocabulary = chance.choice([2, 5, 12, 12, 64, 64, 301, 301, 4200])
    dtype = chance.choice([torch.float32, torch.float32, *FLOATS])
    student = random_logits(chance, (rows, tokens, vocabulary))
    # a teacher of its own, one near the student, or the same
    teacher = random_logits(chance, (rows, tokens, vocabulary))
    teacher = teacher + student * chance.choice([0.0, 0.0, 1.0])
    teacher = student.clone() if chance.happens(0.05) else teacher
    old_log_probs, sampler, weights = None, None, None
    if chance.happens(0.9):
        old_log_probs = random_log_probs(chance, rows, tokens)
    if old_log_probs is not None and chance.happens(0.25):
        log_probs = random_log_probs(chance, rows, tokens).to(old_log_probs.dtype)
        sampler = log_probs, chance.choice([chance.number(0.3, 4.0)] * 9 + [0.0])
    elif chance.happens(0.4):
        weights = (chance.uniform(rows, tokens) * 3).to(chance.choice(FLOATS))
    counted = (chance.uniform(rows) < 0.7).to(chance.choice(MASKS))
    return RandomLoss(
        random_settings(chance, vocabulary),
        chance.choice([0.7, 1.0, 1.0, 1.3, chance.number(0.2, 3.0)]),
        chance.choice(LOSS_AGG_MODES),
        student.to(dtype),
        teacher.to(chance.choice([dtype, dtype, dtype, *FLOATS])),
        chance.integers(0, vocabulary, rows, tokens),
        chance.mask(rows, tokens).to(chance.choice(MASKS)),
        old_log_probs,
        counted if chance.happens(0.7) else None,
        weights,
        sampler,
    )


def random_settings(chance: Chance, vocabulary: int) -> DistillationSettings:
    """Settings of the loss; K from 1 to above V."""
    full, topk = chance.happens(0.8), chance.happens(0.7)
    sizes = [1, 2, 5, 100, max(vocabulary - 1, 1), vocabulary, vocabulary + 3]
    alpha = chance.choice([0.0, 0.5, 1.0, chance.number(0.0, 1.0)])
    return DistillationSettings(
        full,
        alpha if full or chance.happens(0.1) else 1.0,
        chance.choice(sizes) if topk else None,
        chance.happens(0.6),
        chance.choice([None, 0.5, 0.8, 2.0, chance.number(0.05, 8.0)]),
    )


def random_log_probs(chance: Chance, rows: int, tokens: int) -> Tensor:
    """Log-probs of any floating dtype, a few of them far from any policy."""
    sizes = chance.choice([3.0, 3.0, 3.0, 60.0])
    return (-chance.uniform(rows, tokens) * sizes).to(chance.choice(FLOATS))


def random_logits(chance: Chance, shape: tuple[int, int, int]) -> Tensor:
    """Logits of several sizes: with ties, and with values that are not finite, now and then."""
    logits = chance.normal(*shape) * chance.choice([0.01, 1.0, 3.0, 8.0, 40.0])
    if chance.happens(0.2):
        logits = (logits * 2).round() / 2
    if chance.happens(0.08):
        value = chance.choice([float("inf"), float("-inf"), float("-inf"), float("nan")])
        logits[chance.uniform(*shape) < 0.02] = value
    return logits
