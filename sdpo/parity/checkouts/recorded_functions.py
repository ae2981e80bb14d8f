"""Runs single functions of a checkout on recorded losses; versions without SDPO have some too."""

from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from msgspec.structs import replace
from torch import Tensor

from sdpo.fixtures import GoldenCase, GoldenFamily
from sdpo.parity.cases.checked_call import same_bits
from sdpo.parity.checkouts.description import FunctionResult
from sdpo.parity.live_fork.checkout import CheckoutError
from sdpo.parity.live_fork.losses import SETTINGS
from sdpo.parity.live_fork.modules import CORE_ALGOS, TORCH_FUNCTIONAL, live_function
from sdpo.parity.live_fork.rollout_weights import live_rollout_weights
from sdpo.parity.live_fork.settings import distillation_settings
from sdpo.parity.record.recipes import dtype_named
from sdpo.reference.loss import LOSS_AGG_MODES

TOPK_KL = "verl.trainer.distillation.fsdp.losses"
KINDS = ("log_probs", "topk_log_probs", "all_log_probs")

Tensors = Mapping[str, Tensor]


class FunctionCheck(NamedTuple):
    """A function, the recorded value that it should give, and how it is called.

    Attributes:
        name: in the table.
        module, function: where the recorded commit, or verl, has it.
        expected: the recorded tensor.
        takes: whether a case is one for it.
        call: its value on a case.
    """

    name: str
    module: str
    function: str
    expected: str
    takes: Callable[[GoldenCase], bool]
    call: Callable[[Callable[..., Any], GoldenCase, Tensors], Tensor]


def checks() -> Iterator[FunctionCheck]:
    """The functions that are looked for."""
    yield FunctionCheck(
        "`logprobs_from_logits`",
        TORCH_FUNCTIONAL,
        "logprobs_from_logits",
        "out.student_log_probs",
        lambda case: True,
        _log_probs,
    )
    yield FunctionCheck(
        "rollout weights",
        "verl.trainer.ppo.rollout_corr_helper",
        "compute_rollout_correction_and_rejection_mask",
        "in.rollout_is_weights",
        lambda case: case.config["rollout_is_threshold"] is not None,
        _rollout_weights,
    )
    yield FunctionCheck(
        "`compute_self_distillation_loss`",
        CORE_ALGOS,
        "compute_self_distillation_loss",
        "out.loss",
        lambda case: True,
        _loss,
    )
    for mode in LOSS_AGG_MODES:
        yield FunctionCheck(
            f"`agg_loss`, {mode}",
            CORE_ALGOS,
            "agg_loss",
            "out.loss",
            lambda case, mode=mode: case.config["loss_agg_mode"] == mode,
            _aggregated,
        )
    yield FunctionCheck(
        "`compute_forward_kl_topk`, against alpha 0 with a tail",
        TOPK_KL,
        "compute_forward_kl_topk",
        "out.per_token_loss",
        _is_bare_topk,
        _topk_kl,
    )


def run_checks(family: GoldenFamily) -> list[FunctionResult]:
    """Run every function that the checkout has on the recorded losses that it takes."""
    return [run_check(check, family) for check in checks()]


def run_check(check: FunctionCheck, family: GoldenFamily) -> FunctionResult:
    """Run one function; a checkout without it gives a result without cases."""
    try:
        function = live_function(check.module, check.function)
    except CheckoutError:
        return FunctionResult(check.name)
    cases = [case for case in family if check.takes(case)]
    result = FunctionResult(check.name, len(cases))
    for case in cases:
        tensors = case.tensors()
        try:
            actual = check.call(function, case, tensors)
        except Exception as error:
            why = f"{type(error).__name__}: {' '.join(str(error).split())} ({case.id})"
            return replace(result, problem=why)
        result = _counted(result, case.id, actual, tensors[check.expected])
    return result


def _counted(
    result: FunctionResult, case_id: str, actual: Tensor, expected: Tensor
) -> FunctionResult:
    """The result with one more case."""
    if same_bits(actual, expected):
        return replace(result, equal=result.equal + 1)
    actual, expected = actual.detach().double(), expected.double()
    finite = expected.isfinite()
    if not actual.isfinite().equal(finite):
        return replace(result, one_side_finite=result.one_side_finite + 1)
    distance = relative_distance(actual[finite], expected[finite])
    if distance <= result.largest:
        return result
    return replace(result, largest=distance, worst=case_id)


def relative_distance(actual: Tensor, expected: Tensor) -> float:
    """|actual - expected| as a share of the larger of both, in the norm; 0 for two zeros."""
    scale = max(actual.norm().item(), expected.norm().item())
    return (actual - expected).norm().item() / scale if scale else 0.0


def _is_bare_topk(case: GoldenCase) -> bool:
    """Whether what is recorded for each token is KL(teacher‖student) on a top-k with tail."""
    config = case.config
    return (
        config["mode"] == "topk_tail"
        and config["alpha"] == 0.0
        and config["is_clip"] is None
        and not case.entry["tensors"].keys() & {"in.rollout_is_weights"}
        and config["dtype"] == "float32"
    )


def _log_probs(function: Callable[..., Tensor], case: GoldenCase, tensors: Tensors) -> Tensor:
    logits = tensors["in.student_logits"].to(dtype_named(case.config["dtype"]))
    return function(logits / case.config["temperature"], tensors["in.responses"])


def _rollout_weights(_: Callable[..., Tensor], case: GoldenCase, tensors: Tensors) -> Tensor:
    weights, _metrics = live_rollout_weights(
        tensors["in.old_log_probs"],
        tensors["in.rollout_log_probs"],
        case.config["rollout_is_threshold"],
        tensors["in.response_mask"],
    )
    return weights


def _loss(function: Callable[..., Tensor], case: GoldenCase, tensors: Tensors) -> Tensor:
    sides = {
        f"{side}_{kind}": tensors.get(f"out.{side}_{kind}")
        for side in ("student", "teacher")
        for kind in KINDS
    }
    given = ("response_mask", "old_log_probs", "self_distillation_mask", "rollout_is_weights")
    loss = function(
        **sides,
        **{name: tensors.get(f"in.{name}") for name in given},
        self_distillation_config=distillation_settings({n: case.config[n] for n in SETTINGS}),
        loss_agg_mode=case.config["loss_agg_mode"],
    )
    return loss[0] if isinstance(loss, tuple) else loss


def _aggregated(function: Callable[..., Tensor], case: GoldenCase, tensors: Tensors) -> Tensor:
    return function(
        loss_mat=tensors["out.per_token_loss"],
        loss_mask=tensors["out.loss_mask"],
        loss_agg_mode=case.config["loss_agg_mode"],
        batch_num_tokens=tensors["out.batch_num_tokens"],
    )


def _topk_kl(function: Callable[..., Tensors], case: GoldenCase, tensors: Tensors) -> Tensor:
    """Verl's divergence on the entries that the student chose, with verl's own defaults."""
    logits = tensors["in.student_logits"] / case.config["temperature"]
    settings = live_function("verl.workers.config", "DistillationLossConfig")
    values = function(
        student_logits=logits.flatten(0, 1).unsqueeze(0),
        teacher_topk_log_probs=_nested(tensors["out.teacher_topk_log_probs"]),
        teacher_topk_ids=_nested(tensors["out.student_topk_indices"]),
        config=SimpleNamespace(distillation_loss=settings()),
        data_format="thd",
    )
    return values["distillation_losses"].reshape(logits.shape[:2])


def _nested(rows: Tensor) -> Tensor:
    """Rows as verl hands them to its loss."""
    return torch.nested.as_nested_tensor(list(rows), layout=torch.jagged)
