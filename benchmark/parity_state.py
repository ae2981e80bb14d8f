"""What the audit of a run must remember in a checkpoint, so that a resumed run audits the same.

The trainer's checkpoints do not hold it: rows, the measured rounding that budgets come from, and
the lockstep replica.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

REPLICA = "parity_replica.safetensors"


def save_audit(audit: Any, folder: Path) -> dict[str, Any]:
    """Plain values, for the checkpoint's seal; the replica goes to a file in the checkpoint."""
    replica = audit.replicas.get("lockstep")
    if replica is not None:
        save_file(tensors_of(audit, replica), folder / REPLICA)
    return {
        "rows": audit.rows,
        "drift": audit.drift,
        "updates": audit.updates,
        "noise": audit.noise,
    }


def load_audit(audit: Any, folder: Path, state: dict[str, Any]) -> None:
    """Restore what `save_audit` kept, once the trainer's own state is loaded.

    The audit's files are written anew from the restored rows.
    """
    from sdpo.callback import append_row

    audit.rows, audit.drift = list(state["rows"]), list(state["drift"])
    audit.updates, audit.noise = state["updates"], dict(state["noise"])
    for name, rows in (("parity.csv", audit.rows), ("drift.csv", audit.drift)):
        (audit.folder / name).unlink(missing_ok=True)
        for place, row in enumerate(rows):
            append_row(audit.folder / name, row, new=place == 0)
    if (folder / REPLICA).is_file():
        audit.replicas["lockstep"] = replica = audit._replica()
        put_tensors(audit, replica, load_file(folder / REPLICA))


def tensors_of(audit: Any, replica: Any) -> dict[str, torch.Tensor]:
    """Weights of the replica's student and teacher, its optimizer's moments, and the origin."""
    found = {f"origin.{name}": value for name, value in audit.origin.items()}
    for role in ("student", "teacher"):
        for name, value in getattr(replica, role).named_parameters():
            found[f"{role}.{name}"] = value
    for place, parameter in enumerate(parameters_of(replica.optimizer)):
        for key, value in replica.optimizer.state.get(parameter, {}).items():
            found[f"optimizer.{place}.{key}"] = torch.as_tensor(value)
    return {name: value.detach().clone().contiguous() for name, value in found.items()}


def put_tensors(audit: Any, replica: Any, tensors: dict[str, torch.Tensor]) -> None:
    """The reverse of `tensors_of`."""
    prefix = "origin."
    audit.origin = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    with torch.no_grad():
        for role in ("student", "teacher"):
            for name, value in getattr(replica, role).named_parameters():
                value.copy_(tensors[f"{role}.{name}"])
    for place, parameter in enumerate(parameters_of(replica.optimizer)):
        start = f"optimizer.{place}."
        state = {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}
        replica.optimizer.state[parameter] = state


def parameters_of(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """All parameters in the order of the groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
