"""One comparison's inputs: a loss case, recorded or generated, and the reference's values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sdpo.fixtures import GoldenCase, GoldenDataError, GoldenFamily
from sdpo.fixtures.loader import DTYPES
from sdpo.loss.argument_shapes import check_logits, check_loss_arguments
from sdpo.parity.cases.call_conditions import PLAIN_CALL, CallConditions
from sdpo.parity.cases.value_names import by_our_names
from sdpo.reference.loss import loss_from_logits
from sdpo.settings.config import SDPOConfig

LOSS_SETTINGS = (
    "full_logit_distillation",
    "alpha",
    "distillation_topk",
    "distillation_add_tail",
    "is_clip",
    "loss_agg_mode",
    "temperature",
)


@dataclass(frozen=True, eq=False)
class LossCase:
    """Inputs of the loss, in the case's dtype, with masks, weights and old log-probs as recorded.

    `student_logits`, `teacher_logits` are `(B, T, V)`; `responses`, `response_mask`,
    `old_log_probs`, `rollout_is_weights` `(B, T)`; `self_distillation_mask` `(B,)`.
    `recorded` holds stage values recorded from the reference; it is empty for generated cases.
    `call` is how a loss is called on it, which changes no expected value.
    """

    id: str
    config: SDPOConfig
    student_logits: Tensor
    teacher_logits: Tensor
    responses: Tensor
    response_mask: Tensor
    old_log_probs: Tensor | None = None
    self_distillation_mask: Tensor | None = None
    rollout_is_weights: Tensor | None = None
    tags: tuple[str, ...] = ()
    recorded: Mapping[str, Tensor] = field(default_factory=dict)
    call: CallConditions = PLAIN_CALL

    @property
    def mode(self) -> str:
        """`sampled`, `full_vocab`, `topk_tail` or `topk_renorm`."""
        if not self.config.full_logit_distillation:
            return "sampled"
        if self.config.distillation_topk is None:
            return "full_vocab"
        return "topk_tail" if self.config.distillation_add_tail else "topk_renorm"

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the computation."""
        return self.student_logits.dtype

    @property
    def coarsest_dtype(self) -> torch.dtype:
        """The dtype of the two sides' logits that rounds more."""
        dtypes = (self.student_logits.dtype, self.teacher_logits.dtype)
        return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)

    @property
    def loss_mask(self) -> Tensor:
        """`(B, T)`: weight of each token, response mask times distillation mask."""
        if self.self_distillation_mask is None:
            return self.response_mask
        return self.response_mask * self.self_distillation_mask.unsqueeze(1)


def _from_golden(golden: GoldenCase) -> LossCase:
    """A recorded loss case.

    Raises:
        GoldenDataError: damaged file, unknown dtype, tensors that do not fit together, or settings
            that the loss does not allow.
    """
    tensors = golden.tensors()
    where = f"loss case {golden.id}"
    try:
        dtype = DTYPES[golden.config["dtype"]]
        if not dtype.is_floating_point:
            raise GoldenDataError(f"{where}: dtype {dtype} of the computation is not floating")
        teacher_dtype = DTYPES[golden.config.get("teacher_dtype", golden.config["dtype"])]
        config = SDPOConfig(**{name: golden.config[name] for name in LOSS_SETTINGS})
        optional = ("old_log_probs", "self_distillation_mask", "rollout_is_weights")
        case = LossCase(
            id=golden.id,
            config=config,
            student_logits=tensors["in.student_logits"].to(dtype),
            teacher_logits=tensors["in.teacher_logits"].to(teacher_dtype),
            responses=tensors["in.responses"],
            response_mask=tensors["in.response_mask"],
            tags=tuple(golden.tags),
            recorded=by_our_names(tensors, "out."),
            call=PLAIN_CALL,
            **{name: tensors.get(f"in.{name}") for name in optional},
        )
        check_logits(case.student_logits, case.teacher_logits)
        given = {name: getattr(case, name) for name in ("responses", "response_mask", *optional)}
        check_loss_arguments(case.student_logits.shape[:2], **given)
        return case
    except KeyError as error:
        raise GoldenDataError(f"{where}: {error} is missing") from error
    except ValueError as error:
        raise GoldenDataError(f"{where}: {error}") from error


_CASES: dict[int, tuple[GoldenCase, LossCase]] = {}
"""Recorded cases by the entry of their manifest, which each of them keeps."""


def loss_case(golden: GoldenCase) -> LossCase:
    """A recorded case of the loss; the same object for the same entry of a manifest.

    Raises:
        GoldenDataError: as `_from_golden`.
    """
    known = _CASES.get(id(golden.entry))
    if known is None or known[0].entry is not golden.entry or known[0].folder != golden.folder:
        known = _CASES[id(golden.entry)] = (golden, _from_golden(golden))
    return known[1]


def loss_cases(family: GoldenFamily) -> list[LossCase]:
    """The cases of a family of the loss; the same objects in each part of a family."""
    return [loss_case(golden) for golden in family]


def reference_trace(case: LossCase) -> dict[str, Tensor]:
    """Stage values of the reference: recorded where they were, else from the transcription."""
    return transcription_trace(case, case.recorded.get("support.indices")) | dict(case.recorded)


def transcription_trace(case: LossCase, indices: Tensor | None = None) -> dict[str, Tensor]:
    """Stage values of the transcription, on its own choice of the support or a given one."""
    leaf = case.student_logits.detach().clone().requires_grad_(True)
    values: dict[str, Tensor] = {}
    settings: dict[str, Any] = {name: getattr(case.config, name) for name in LOSS_SETTINGS}
    loss = loss_from_logits(
        leaf,
        case.teacher_logits,
        case.responses,
        case.response_mask,
        topk_indices=indices,
        old_log_probs=case.old_log_probs,
        self_distillation_mask=case.self_distillation_mask,
        rollout_is_weights=case.rollout_is_weights,
        trace=values,
        **settings,
    )
    (gradient,) = torch.autograd.grad(loss, leaf)
    trace = by_our_names(values) | {"gradient": gradient}
    if not case.mode.startswith("topk"):
        trace.pop("tail.student", None)
        trace.pop("tail.teacher", None)
    return {name: value.detach() for name, value in trace.items()}
