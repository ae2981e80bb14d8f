"""What a checkpoint of `SDPOTrainer` holds beside TRL's files: the teacher, and where in an update.

| file | content | written by |
|---|---|---|
| `sdpo_teacher.safetensors` | weights of the teacher | main process |
| `sdpo_lockstep.safetensors` | the audit's replica, with `audit_lockstep` | main process |
| `sdpo_state_RANK.safetensors` | counters; within an update also its rollouts | every process |
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sdpo.update.observer import UpdateObserver
from sdpo.update.rollouts import TRLBatch

TEACHER_FILE = "sdpo_teacher.safetensors"
REPLICA_FILE = "sdpo_lockstep.safetensors"


def save_trainer_state(trainer: Any, folder: Path) -> None:
    """Write the teacher and the place within an update into a checkpoint's folder."""
    state = trainer.teacher.state_dict()
    if trainer.accelerator.is_main_process:
        save_file(state, folder / TEACHER_FILE)
        watched = {k: v for observer in trainer.observers for k, v in observer.tensors().items()}
        if watched:
            save_file(watched, folder / REPLICA_FILE)
    inside = not trainer.schedule.ends_update(trainer._step)
    parts = trainer._buffered_inputs if inside else None
    tensors, plain = split_inputs(parts or [])
    counters = {"step": trainer._step, "stepped": trainer._stepped}
    counters["buffered_inputs"] = None if parts is None else plain
    if trainer.reference_policy is not None:
        counters["reference_policy"] = trainer.reference_policy.digest()
    counters["observers"] = {_name(o): o.counters() for o in trainer.observers}
    save_file(tensors, state_file(trainer, folder), {"state": json.dumps(counters)})


def split_inputs(parts: list[TRLBatch]) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """The tensors of a list of model inputs by `place.name`, and what else each of them holds.

    Raises:
        TypeError: something is neither a tensor nor plain JSON; raised when it is written.
    """
    tensors, plain = {}, []
    for place, part in enumerate(parts):
        for name, value in part.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{place}.{name}"] = value.detach().clone().contiguous()
        plain.append({k: v for k, v in part.items() if not isinstance(v, torch.Tensor)})
    return tensors, plain


def join_inputs(tensors: dict[str, torch.Tensor], plain: list[dict]) -> list[TRLBatch]:
    """What `split_inputs` took apart."""
    parts: list[TRLBatch] = [dict(part) for part in plain]
    for name, tensor in tensors.items():
        place, key = name.split(".", 1)
        parts[int(place)][key] = tensor
    return parts


def load_trainer_state(trainer: Any, folder: Path) -> None:
    """Restore what `save_trainer_state` wrote.

    Raises:
        FileNotFoundError: the checkpoint has no teacher, for instance because plain GRPO wrote it.
        ValueError: the saved teacher does not fit the model, or training began from other weights.
    """
    if not (folder / TEACHER_FILE).is_file():
        raise FileNotFoundError(
            f"{folder} has no {TEACHER_FILE}: it was not written by SDPOTrainer with a teacher, so "
            "training cannot go on from it as if it had been; start anew from its weights"
        )
    trainer.teacher.load_state_dict(load_file(folder / TEACHER_FILE))
    path = state_file(trainer, folder)
    with safe_open(path, framework="pt") as file:
        saved = json.loads(file.metadata()["state"])
    anchor = trainer.reference_policy
    if anchor is not None and saved.get("reference_policy") not in (None, anchor.digest()):
        raise ValueError(
            f"{folder} was trained with use_kl_loss towards other weights than those that the "
            "trainer was built with: resume with the model that training began with"
        )
    trainer._step, trainer._stepped = saved["step"], saved["stepped"]
    watched = folder / REPLICA_FILE
    tensors = load_file(watched) if watched.is_file() else {}
    for observer in trainer.observers:
        if _name(observer) in saved.get("observers", {}):
            observer.resume(saved["observers"][_name(observer)], tensors)
    if saved["buffered_inputs"] is not None:
        tensors = load_file(path, device=str(trainer.accelerator.device))
        trainer._buffered_inputs = join_inputs(tensors, saved["buffered_inputs"])


def state_file(trainer: Any, folder: Path) -> Path:
    """The file of this process."""
    return folder / f"sdpo_state_{trainer.accelerator.process_index}.safetensors"


def _name(observer: UpdateObserver) -> str:
    """Return the name under which a checkpoint keeps what an observer counts."""
    return type(observer).__name__
