"""Golden data of the loss written anew, in the format of `fixtures/README.md`."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save

from sdpo.parity.cases.loss_case import LOSS_SETTINGS, LossCase, transcription_trace
from sdpo.parity.cases.value_names import by_verl_names

INPUTS = (
    "student_logits",
    "teacher_logits",
    "responses",
    "response_mask",
    "old_log_probs",
    "self_distillation_mask",
    "rollout_is_weights",
)


SIDES = ("student", "teacher")


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def write_loss(folder: Path, cases: Sequence[LossCase], **changed: torch.Tensor) -> Path:
    """Write cases with what the transcription gives on them; returns the folder.

    `changed` are tensors to write in place of a case's, by their names in the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = [written(folder, case, changed) for case in cases]
    manifest = {"family": "loss", "cases": entries, "case_count": len(entries), "error_cases": []}
    (folder / "cases.json").write_text(json.dumps(manifest))
    return folder


def written(folder: Path, case: LossCase, changed: Mapping[str, torch.Tensor]) -> dict:
    """Write a case's tensors; returns its entry of the manifest."""
    inputs = {f"in.{name}": getattr(case, name) for name in INPUTS}
    trace = transcription_trace(case)
    outputs = {f"out.{name}": value for name, value in by_verl_names(trace).items()}
    tensors = {
        n: t.clone(memory_format=torch.contiguous_format)
        for n, t in (inputs | outputs).items()
        if t is not None
    }
    for side in SIDES:
        tensors[f"in.{side}_logits"] = tensors[f"in.{side}_logits"].float()
    if case.dtype == torch.float64:
        raise ValueError("logits are stored in float32, which would round those of the case")
    tensors |= changed
    data = save(tensors)
    (folder / f"{case.id}.safetensors").write_bytes(data)
    settings = {name: getattr(case.config, name) for name in LOSS_SETTINGS}
    rows, tokens, width = case.student_logits.shape
    return {
        "id": case.id,
        "tags": list(case.tags),
        "config": settings | {"mode": case.mode, "dtype": name_of(case.dtype)},
        "dims": {"B": rows, "T": tokens, "V": width},
        "file": f"{case.id}.safetensors",
        "sha256": hashlib.sha256(data).hexdigest(),
        "tensors": {n: [name_of(t.dtype), list(t.shape)] for n, t in tensors.items()},
    }
