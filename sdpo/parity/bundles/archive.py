"""Bundles as archives: a zip whose members are read into memory, each up to its limit.

Nothing in one is ever executed or written to disk, and no other member is read.
"""

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct

from sdpo.parity.report.report_context import Seen
from sdpo.parity.report.report_rows import Shape

_EPOCH = (1980, 1, 1, 0, 0, 0)


class BundleError(Exception):
    """A file that is no usable bundle; the message says why."""


class Shrunk(Struct, frozen=True, forbid_unknown_fields=True):
    """The shape of a case before and after shrinking, and the number of tries."""

    before: Shape
    after: Shape
    tries: int


class BundleDocument(Struct, frozen=True, forbid_unknown_fields=True):
    """What every bundle says beside its case; `environment` is the audit's."""

    schema_version: Literal[1]
    candidate: str
    seen: Seen
    shrunk: Shrunk
    environment: dict[str, Any]
    command: str


_Document = TypeVar("_Document", bound=BundleDocument)


def write_archive(path: Path, members: Mapping[str, bytes]) -> None:
    """Write an archive; the same members give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            member = zipfile.ZipInfo(name, date_time=_EPOCH)
            archive.writestr(member, data, zipfile.ZIP_DEFLATED)


def read_archive(path: Path, largest: Mapping[str, int]) -> dict[str, bytes]:
    """Read the members of an archive.

    Args:
        path: of the file.
        largest: the names of all members, each with its largest size.

    Raises:
        BundleError: unreadable, damaged, too large, or with other members.
    """
    try:
        if path.stat().st_size > sum(largest.values()):
            raise BundleError(f"{path} is too large for a bundle")
        content = io.BytesIO(path.read_bytes())
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}") from error
    try:
        with zipfile.ZipFile(content) as archive:
            names = sorted(archive.namelist())
            if names != sorted(largest):
                raise BundleError(f"{path}: members {names[:4]}, expected {sorted(largest)}")
            return {name: _member(archive, name, limit) for name, limit in largest.items()}
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError) as error:
        raise BundleError(f"{path} is no zip archive, or damaged: {error}") from error


def _member(archive: zipfile.ZipFile, name: str, largest: int) -> bytes:
    with archive.open(name) as member:
        data = member.read(largest + 1)
    if len(data) > largest:
        raise BundleError(f"{name} is larger than {largest >> 20} MiB")
    return data


def member_names(path: Path) -> list[str]:
    """List the names of an archive's members; none of a file that is no archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return []


def document_bytes(document: BundleDocument) -> bytes:
    """Encode a document as a member of an archive."""
    return json.dumps(msgspec.to_builtins(document), ensure_ascii=False, indent=1).encode()


def read_document(path: Path, data: bytes, document_type: type[_Document]) -> _Document:
    """Read the document of a member.

    Raises:
        BundleError: not JSON, or not in the format.
    """
    try:
        return msgspec.convert(json.loads(data), document_type)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is not in the format of a bundle: {error}") from error
