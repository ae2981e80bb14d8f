"""TRL's functions of a self-distillation loss: SDFT and SDPO trainers each have a copy of them."""

from torch import Tensor

from sdpo.parity.neighbours.asked import counted, mean_of, refuse_wide_topk, token_log_probs
from sdpo.parity.neighbours.packages import attribute_of
from sdpo.settings.config import SDPOConfig


class SelfDistillation:
    """The functions of one copy, put together as the trainers do, with the reference's mean."""

    def __init__(self, name: str) -> None:
        self.full_vocabulary = attribute_of(name, "compute_full_logit_self_distillation_loss")
        self.topk = attribute_of(name, "compute_topk_self_distillation_loss")
        self.sampled = attribute_of(name, "compute_sampled_token_self_distillation_loss")
        self.with_ratio = attribute_of(name, "apply_importance_sampling_clipping")

    def __call__(
        self,
        student_logits: Tensor,
        teacher_logits: Tensor,
        responses: Tensor,
        response_mask: Tensor,
        *,
        old_log_probs: Tensor | None = None,
        self_distillation_mask: Tensor | None = None,
        config: SDPOConfig,
    ) -> Tensor:
        """The loss of a batch.

        Raises:
            NotImplementedError: K is above the vocabulary.
        """
        student = student_logits / config.temperature
        teacher = (teacher_logits / config.temperature).detach()
        loss = self.per_token(student, teacher, responses, config)
        if config.is_clip is not None:
            own = token_log_probs(student, responses)
            loss = self.with_ratio(loss, own, old_log_probs, config.is_clip)
        return mean_of(loss, counted(response_mask, self_distillation_mask), config.loss_agg_mode)

    def per_token(
        self, student: Tensor, teacher: Tensor, responses: Tensor, config: SDPOConfig
    ) -> Tensor:
        """The divergence of each token, `(B, T)`, from logits after temperature.

        Raises:
            NotImplementedError: K is above the vocabulary.
        """
        if not config.full_logit_distillation:
            return self.sampled(student, teacher, responses, distillation_alpha=config.alpha)
        if config.distillation_topk is None:
            return self.full_vocabulary(student, teacher, distillation_alpha=config.alpha)
        refuse_wide_topk(config, student)
        return self.topk(
            student,
            teacher,
            distillation_topk=config.distillation_topk,
            distillation_alpha=config.alpha,
            distillation_add_tail=config.distillation_add_tail,
        )


class Sdft(SelfDistillation):
    """The copy of the SDFT trainer."""

    def __init__(self) -> None:
        super().__init__("trl-sdft")


class Sdpo(SelfDistillation):
    """The copy of the SDPO trainer."""

    def __init__(self) -> None:
        super().__init__("trl-sdpo")
