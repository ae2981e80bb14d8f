"""Canaries of the recorded updates: the same model calls and products without the transcription.

An update is repeated by `sdpo.update.actor_update.actor_update` with the transcription's loss,
which the loss family checks by itself; the models' calls are written out here. What that loss
leaves out (entropy, a KL term, packed rows) has a canary of its forward pass, and of the update of
a case with products of the same shapes.
"""

import functools
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import sdpo.update.actor_update
from sdpo.fixtures import packaged_family
from sdpo.parity.cases.stage_trace import StageTrace
from sdpo.parity.cases.value_names import by_our_names
from sdpo.parity.recorded.golden_updates import batches, build, golden_tensors
from sdpo.parity.recorded.updates import run_ours
from sdpo.reference.loss import loss_from_logits
from sdpo.trainer.self_teachers import at_rows_with_signal
from sdpo.update.ema_teacher import trust_region_logits
from sdpo.update.shared_prefix import MODEL_INPUTS
from tests.helpers.measured import gives_bits
from tests.helpers.recorded.canaries import label_log_probs

SAME_SHAPES = {
    "P-U040": "P-U002",
    "P-U042": "P-U001",
    "P-U044": "P-U002",
    "P-U045": "P-U001",
    "P-U046": "P-U034",
}
"""Cases whose canary is their forward pass, and the update of another one."""


@dataclass
class ReferenceStages:
    """The stages of the reference's loss, in the place of `LossStages`."""

    trace: dict[str, Tensor]
    aggregate: Tensor

    def named(self) -> dict[str, Tensor]:
        return by_our_names(self.trace)


def reference_stages(*logits_and_masks, config, old_log_probs, teacher_absent=None, **others):
    """The reference's loss with the arguments of ours; not for packed rows with holes."""
    trace: dict[str, Tensor] = {}
    names = ("full_logit_distillation", "distillation_topk", "distillation_add_tail", "alpha")
    settings = {name: getattr(config, name) for name in (*names, "is_clip", "loss_agg_mode")}
    temperature = {"temperature": config.temperature, "old_log_probs": old_log_probs}
    loss = loss_from_logits(*logits_and_masks, **settings, **temperature, **others, trace=trace)
    return ReferenceStages(trace, loss)


def whole_logits(model: torch.nn.Module, batch: dict[str, Tensor], prefix: str = "") -> Tensor:
    """Logits of the responses `(B, T, V)`, cut out of those of all tokens."""
    inputs = {name: batch[prefix + name] for name in MODEL_INPUTS}
    return model(**inputs, use_cache=False).logits[:, -batch["responses"].shape[-1] - 1 : -1]


def autocast_logits(model: torch.nn.Module, batch: dict[str, Tensor], prefix: str = "") -> Tensor:
    """As `whole_logits`, under autocast to bfloat16."""
    with torch.autocast("cpu", torch.bfloat16):
        return whole_logits(model, batch, prefix)


def packed_logits(model: torch.nn.Module, batch: dict[str, Tensor], prefix: str = "") -> Tensor:
    """As `whole_logits`, from one sequence of all tokens that are attended; zeros elsewhere."""
    kept = batch[f"{prefix}attention_mask"] != 0
    ids, positions = (batch[prefix + name][kept][None] for name in ("input_ids", "position_ids"))
    packed = model(
        input_ids=ids, attention_mask=None, position_ids=positions, use_cache=False
    ).logits.squeeze(0)
    logits = packed.new_zeros(*kept.shape, packed.shape[-1])
    logits[kept] = packed
    return logits[:, -batch["responses"].shape[-1] - 1 : -1]


@torch.no_grad()
def at_signal(student: Any, teacher: Any, batch: dict[str, Tensor], config: Any) -> Tensor:
    """The teacher as the trainer calls it: frozen, and on the rows that have a teacher prompt."""
    teacher.requires_grad_(False)
    logits = at_rows_with_signal(
        batch, lambda rows: sdpo.update.actor_update.response_logits(teacher, rows, "teacher_")
    )
    if config.teacher_regularization == "trust-region":
        live = sdpo.update.actor_update.response_logits(student, batch, "teacher_")
        return trust_region_logits(logits, live, config.teacher_update_rate)
    return logits


def run_with_reference_loss(case_id: str, **replaced: Any) -> StageTrace:
    """A recorded update by ours, but with the reference's loss and some functions replaced."""
    family = packaged_family("update")
    golden = family.case(case_id)
    with mock.patch.multiple(
        sdpo.update.actor_update, self_distillation_stages=reference_stages, **replaced
    ):
        return run_ours(family, golden, golden.tensors())


def of_each_update(trace: StageTrace, name: str) -> list[list[float]]:
    """A number of each optimizer step of each update, such as the gradient's norm."""
    found: dict[int, list[float]] = {}
    for place, value in trace.items():
        if place.name == name:
            found.setdefault(place.update, []).append(value)
    return list(found.values())


def first_micro_batch(case_id: str) -> tuple[torch.nn.Module, dict[str, Tensor]]:
    """The initial student, and the rows that it meets first."""
    family = packaged_family("update")
    golden = family.case(case_id)
    actor, _, _ = build(family, golden)
    batch, _ = next(batches(golden, golden.tensors()))
    size = golden.config["actor"]["ppo_micro_batch_size_per_gpu"]
    return actor, {name: tensor[:size] for name, tensor in batch.items()}


@torch.no_grad()
def rows_alone_have_the_same_bits(case_id: str) -> bool:
    """Whether logits of the responses alone are those cut out of the logits of all tokens."""
    actor, part = first_micro_batch(case_id)
    return torch.equal(
        whole_logits(actor, part), sdpo.update.actor_update.response_logits(actor, part)
    )


def forward_pass(case_id: str) -> dict[str, Tensor]:
    """Student's log-probs of the first micro-batch, where they count, under the golden name."""
    golden = packaged_family("update").case(case_id)
    actor, part = first_micro_batch(case_id)
    prefix, tensors = "u0.", golden.tensors()
    packs = golden.config["actor"]["use_remove_padding"]
    logits_of = packed_logits if packs else whole_logits
    with torch.no_grad():
        logits = logits_of(actor, part) / golden.config["temperature"]
        found = label_log_probs(logits, part["responses"])
    counts = tensors[f"{prefix}mb0.loss_mask"] != 0
    return {f"{prefix}mb0.student_log_probs": torch.where(counts, found, 0.0)}


@functools.cache
def update_has_recorded_bits(case_id: str) -> bool:
    """Whether this machine's kernels give the recorded bits of an update case."""
    recorded = packaged_family("update").case(case_id).tensors()
    if case_id in SAME_SHAPES:
        canary = forward_pass(case_id)
        (name,) = canary
        counts = recorded[name.replace("student_log_probs", "loss_mask")] != 0
        wanted = {name: torch.where(counts, recorded[name], 0.0)}
        return gives_bits(canary, wanted) and update_has_recorded_bits(SAME_SHAPES[case_id])
    half = packaged_family("update").case(case_id).config["actor"]["compute_dtype"] != "float32"
    calls = autocast_logits if half else whole_logits
    run = run_with_reference_loss(case_id, response_logits=calls)
    return gives_bits(golden_tensors(run), recorded)


@torch.no_grad()
def plain_outputs(
    models: tuple[torch.nn.Module, torch.nn.Module], batch: dict[str, Tensor], temperature: float
) -> dict[str, Tensor]:
    """Everything that the recorded direct calls of a forward pass return, under their names."""
    z, other = (whole_logits(model, batch) / temperature for model in models)
    chosen = z.topk(6, dim=-1).indices
    return {
        "log_probs": label_log_probs(z, batch["responses"]),
        "teacher_log_probs": label_log_probs(other, batch["responses"]),
        "topk_indices": chosen,
        "topk_logps": z.gather(-1, chosen) - z.logsumexp(-1, keepdim=True),
        "teacher_topk_logps": other.gather(-1, chosen) - other.logsumexp(-1, keepdim=True),
        "all_logps": z.log_softmax(-1),
        "entropys": z.logsumexp(-1) - (z.softmax(-1) * z).sum(-1),
    }


@torch.no_grad()
def plain_average(teacher: Tensor, student: Tensor, rate: float, calls: int) -> Tensor:
    """A teacher's weight after some updates, in its dtype."""
    found = teacher.clone()
    for _ in range(calls):
        found.mul_(1.0 - rate).add_(student, alpha=rate)
    return found
