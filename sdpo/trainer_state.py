"""What a checkpoint of `SDPOTrainer` holds beside TRL's files: the teacher, and where in an update.

| file | content | written by |
|---|---|---|
| `sdpo_teacher.safetensors` | weights of the teacher | main process |
| `sdpo_state_RANK.pt` | counters; within an update also its rollouts | every process |
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

TEACHER_FILE = "sdpo_teacher.safetensors"


def save_trainer_state(trainer: Any, folder: Path) -> None:
    """Write the teacher and the place within an update into a checkpoint's folder."""
    state = trainer.teacher.state_dict()
    if trainer.accelerator.is_main_process:
        save_file(state, folder / TEACHER_FILE)
    inside = not trainer.schedule.ends_update(trainer._step)
    torch.save(
        {
            "step": trainer._step,
            "stepped": trainer._stepped,
            "buffered_inputs": trainer._buffered_inputs if inside else None,
        },
        state_file(trainer, folder),
    )


def load_trainer_state(trainer: Any, folder: Path) -> None:
    """Restore what `save_trainer_state` wrote.

    Raises:
        FileNotFoundError: the checkpoint has no teacher, for instance because plain GRPO wrote it.
        ValueError: the saved teacher does not fit the model.
    """
    if not (folder / TEACHER_FILE).is_file():
        raise FileNotFoundError(
            f"{folder} has no {TEACHER_FILE}: it was not written by SDPOTrainer with a teacher, so "
            "training cannot go on from it as if it had been; start anew from its weights"
        )
    trainer.teacher.load_state_dict(load_file(folder / TEACHER_FILE))
    device = trainer.accelerator.device
    saved = torch.load(state_file(trainer, folder), map_location=device, weights_only=True)
    trainer._step, trainer._stepped = saved["step"], saved["stepped"]
    if saved["buffered_inputs"] is not None:
        trainer._buffered_inputs = saved["buffered_inputs"]


def state_file(trainer: Any, folder: Path) -> Path:
    """The file of this process."""
    return folder / f"sdpo_state_{trainer.accelerator.process_index}.pt"
