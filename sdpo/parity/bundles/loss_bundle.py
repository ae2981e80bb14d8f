"""A failing case as one archive: tensors, settings, environment, command, and what was seen.

A zip with two members, `bundle.json` and `tensors.safetensors`; nothing in it is ever executed or
written to disk, and no other member is read.
"""

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sdpo.parity.cases.loss_case import LOSS_SETTINGS, LossCase
from sdpo.settings.config import SDPOConfig

VERSION = 1
DOCUMENT, TENSORS = "bundle.json", "tensors.safetensors"
LARGEST = {DOCUMENT: 4 * 2**20, TENSORS: 2**30}
EPOCH = (1980, 1, 1, 0, 0, 0)
REQUIRED = ("student_logits", "teacher_logits", "responses", "response_mask")
OPTIONAL = ("old_log_probs", "self_distillation_mask", "rollout_is_weights")
FIELDS = {"schema_version", "case", "config", "tags", "candidate", "seen", "shrunk"} | {
    "environment",
    "command",
}


class BundleError(Exception):
    """A file that is no usable bundle; the message says why."""


@dataclass(frozen=True)
class Bundle:
    """A case and what a candidate did with it.

    `seen` has `status`, `first_stage` and `note`; `shrunk` the shape before and after, and the
    number of tries; `environment` is the audit's.
    """

    case: LossCase
    candidate: str
    seen: Mapping[str, Any]
    shrunk: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""


def write(path: Path, bundle: Bundle) -> None:
    """Write a bundle; the same bundle gives the same bytes."""
    case = bundle.case
    document = {
        "schema_version": VERSION,
        "case": case.id,
        "config": {name: getattr(case.config, name) for name in LOSS_SETTINGS},
        "tags": list(case.tags),
        "candidate": bundle.candidate,
        "seen": dict(bundle.seen),
        "shrunk": dict(bundle.shrunk),
        "environment": dict(bundle.environment),
        "command": bundle.command,
    }
    tensors = {name: getattr(case, name) for name in (*REQUIRED, *OPTIONAL)}
    tensors |= {f"recorded.{name}": value for name, value in case.recorded.items()}
    plain = {name: t.detach().clone().contiguous() for name, t in tensors.items() if t is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        text = json.dumps(document, ensure_ascii=False, indent=1).encode()
        for name, data in ((DOCUMENT, text), (TENSORS, save(plain))):
            member = zipfile.ZipInfo(name, date_time=EPOCH)
            archive.writestr(member, data, zipfile.ZIP_DEFLATED)


def read(path: Path) -> Bundle:
    """Read a bundle.

    Raises:
        BundleError: unreadable, too large, damaged, or not in the format.
    """
    try:
        content = path.read_bytes() if path.stat().st_size <= sum(LARGEST.values()) else None
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from error
    if content is None:
        raise BundleError(f"{path} is too large for a bundle")
    try:
        members = members_of(content)
        document = json.loads(members[DOCUMENT])
        tensors = load(members[TENSORS])
        if not isinstance(document, dict) or document.keys() != FIELDS:
            raise BundleError(f"{DOCUMENT} must have the fields {sorted(FIELDS)}")
        if document["schema_version"] != VERSION:
            raise BundleError(f"schema_version {document['schema_version']}, expected {VERSION}")
        return bundle_of(document, tensors)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise BundleError(f"{path} is no zip archive, or damaged: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise BundleError(f"{path} is not in the format of a bundle: {error}") from error


def members_of(content: bytes) -> dict[str, bytes]:
    """The two members of an archive, each read up to its limit.

    Raises:
        BundleError: other members, one missing, or one too large.
        BadZipFile: it is no archive, or damaged.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = sorted(archive.namelist())
        if names != sorted(LARGEST):
            raise BundleError(f"members {names[:4]}, expected {sorted(LARGEST)}")
        found = {}
        for name, largest in LARGEST.items():
            with archive.open(name) as member:
                found[name] = member.read(largest + 1)
            if len(found[name]) > largest:
                raise BundleError(f"{name} is larger than {largest >> 20} MiB")
        return found


def bundle_of(document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Bundle:
    """The bundle of a document and its tensors.

    Raises:
        BundleError: tensors that do not fit together.
        ValueError: settings that make no sense.
        KeyError: a part is missing.
    """
    inputs = {name: tensors[name] for name in REQUIRED}
    inputs |= {name: tensors[name] for name in OPTIONAL if name in tensors}
    check_shapes(inputs)
    for name in ("candidate", "command", "case"):
        if not isinstance(document[name], str):
            raise BundleError(f"{name} must be a text")
    seen = document["seen"]
    if not isinstance(seen, dict) or seen.keys() != {"status", "first_stage", "note"}:
        raise BundleError("seen must have status, first_stage and note")
    case = LossCase(
        id=document["case"],
        config=SDPOConfig(**{name: document["config"][name] for name in LOSS_SETTINGS}),
        tags=tuple(map(str, document["tags"])),
        recorded={
            name.removeprefix("recorded."): value
            for name, value in tensors.items()
            if name.startswith("recorded.")
        },
        **inputs,
    )
    keep = {name: dict(document[name]) for name in ("shrunk", "environment")}
    return Bundle(case, document["candidate"], seen, command=document["command"], **keep)


def check_shapes(tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that do not fit together.

    Raises:
        BundleError: they do not.
    """
    logits = tensors["student_logits"]
    if logits.dim() != 3 or not logits.is_floating_point() or not logits.numel():
        raise BundleError(
            f"student_logits {tuple(logits.shape)} {logits.dtype}: expected (B, T, V)"
        )
    shapes = {name: logits.shape[:2] for name in tensors} | {"teacher_logits": logits.shape}
    shapes |= {"student_logits": logits.shape, "self_distillation_mask": logits.shape[:1]}
    for name, tensor in tensors.items():
        if tensor.shape != shapes[name]:
            raise BundleError(f"{name} {tuple(tensor.shape)}, expected {tuple(shapes[name])}")
    responses = tensors["responses"]
    if (
        responses.dtype != torch.int64
        or not 0 <= responses.min() <= responses.max() < logits.shape[2]
    ):
        raise BundleError("responses must be int64 and name entries of the vocabulary")
