"""A failing case as one archive: tensors, settings, environment, command, and what was seen."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sdpo.parity.bundles.archive import (
    BundleDocument,
    BundleError,
    document_bytes,
    read_archive,
    read_document,
    write_archive,
)
from sdpo.parity.cases.call_conditions import PLAIN_CALL, CallConditions
from sdpo.parity.cases.loss_case import LOSS_SETTINGS, LossCase
from sdpo.settings.config import SDPOConfig

DOCUMENT, TENSORS = "bundle.json", "tensors.safetensors"
LARGEST = {DOCUMENT: 4 * 2**20, TENSORS: 2**30}
_REQUIRED = ("student_logits", "teacher_logits", "responses", "response_mask")
_OPTIONAL = ("old_log_probs", "self_distillation_mask", "rollout_is_weights")
_RECORDED = "recorded."


class LossDocument(BundleDocument, frozen=True):
    """The case beside its tensors: id, settings of the loss, tags, and how the loss is called."""

    case: str
    config: dict[str, Any]
    tags: list[str]
    call: CallConditions = PLAIN_CALL


@dataclass(frozen=True)
class LossBundle:
    """A case and what a candidate did with it."""

    case: LossCase
    document: LossDocument


def write(path: Path, bundle: LossBundle) -> None:
    """Write a bundle; the same bundle gives the same bytes."""
    case = bundle.case
    tensors = {name: getattr(case, name) for name in (*_REQUIRED, *_OPTIONAL)}
    tensors |= {f"{_RECORDED}{name}": value for name, value in case.recorded.items()}
    copies = {name: t.detach().clone().contiguous() for name, t in tensors.items() if t is not None}
    write_archive(path, {DOCUMENT: document_bytes(bundle.document), TENSORS: save(copies)})


def read(path: Path) -> LossBundle:
    """Read a bundle.

    Raises:
        BundleError: unreadable, too large, damaged, or not in the format.
    """
    members = read_archive(path, LARGEST)
    document = read_document(path, members[DOCUMENT], LossDocument)
    try:
        return LossBundle(_case(document, load(members[TENSORS])), document)
    except BundleError as error:
        raise BundleError(f"{path}: {error}") from error
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise BundleError(f"{path} is not in the format of a bundle: {error}") from error


def _case(document: LossDocument, tensors: Mapping[str, Tensor]) -> LossCase:
    """Make the case of a document and its tensors.

    Raises:
        BundleError: tensors that do not fit together.
        ValueError: settings that make no sense.
        KeyError: a part is missing.
    """
    inputs = {name: tensors[name] for name in _REQUIRED}
    inputs |= {name: tensors[name] for name in _OPTIONAL if name in tensors}
    _check_shapes(inputs)
    recorded = {
        name.removeprefix(_RECORDED): value
        for name, value in tensors.items()
        if name.startswith(_RECORDED)
    }
    return LossCase(
        id=document.case,
        config=SDPOConfig(**{name: document.config[name] for name in LOSS_SETTINGS}),
        tags=tuple(document.tags),
        recorded=recorded,
        call=document.call,
        **inputs,
    )


def _check_shapes(tensors: Mapping[str, Tensor]) -> None:
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
