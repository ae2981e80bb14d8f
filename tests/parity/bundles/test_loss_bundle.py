"""Replay bundles: shrunk to what still fails, read without trust, replayed to the same verdict."""

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from sdpo.parity.audit import rejudge_and_replay as again
from sdpo.parity.audit.launch import BundlesRequest
from sdpo.parity.audit.rejudge_and_replay import ReplayRequest, replay_one, replay_text
from sdpo.parity.bundles.archive import BundleError, Shrunk
from sdpo.parity.bundles.loss_bundle import (
    DOCUMENT,
    LARGEST,
    TENSORS,
    LossBundle,
    LossDocument,
    read,
    write,
)
from sdpo.parity.bundles.make_and_replay import make, replay
from sdpo.parity.cases.loss_case import LOSS_SETTINGS
from sdpo.parity.compare.statuses import Status
from sdpo.parity.report.report_context import Seen
from tests.helpers import candidates
from tests.helpers.full_case import full_case
from tests.helpers.golden_subset import subset

pytestmark = pytest.mark.usefixtures("certificates_once", "budgets_once")

CANDIDATES = Path(candidates.__file__)


@pytest.fixture
def bundle():
    config = {name: getattr(full_case().config, name) for name in LOSS_SETTINGS}
    document = LossDocument(
        schema_version=1,
        candidate="port.py:loss",
        seen=Seen(Status.DIVERGENT, "aggregate", "1 of 1 over budget"),
        shrunk=Shrunk([4, 6, 64], [4, 6, 32], 3),
        environment={"torch": "2"},
        command="sdpo audit port.py",
        case="P-X",
        config=config,
        tags=["core"],
    )
    return LossBundle(full_case(), document)


def test_a_bundle_is_read_as_it_was_written_and_has_the_same_bytes(bundle, tmp_path):
    bundle = replace(bundle, case=replace(bundle.case, recorded={"importance": torch.ones(2)}))
    for name in ("a.zip", "b.zip"):
        write(tmp_path / name, bundle)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    found = read(tmp_path / "a.zip")
    for name in ("student_logits", "responses", "old_log_probs", "self_distillation_mask"):
        assert torch.equal(getattr(found.case, name), getattr(bundle.case, name))
    assert torch.equal(found.case.recorded["importance"], torch.ones(2))
    assert found.document == bundle.document
    assert found.case.config == bundle.case.config


def rewritten(path: Path, changes: dict[str, bytes | None], extra: dict[str, bytes] | None = None):
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members |= {name: data for name, data in changes.items() if data is not None}
    for name in [name for name, data in changes.items() if data is None]:
        del members[name]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (members | (extra or {})).items():
            archive.writestr(name, data)


def document(path: Path, **changes) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return json.dumps(json.loads(archive.read(DOCUMENT)) | changes).encode()


def tensors(**changes) -> bytes:
    names = ("student_logits", "teacher_logits", "responses", "response_mask")
    found = {name: getattr(full_case(), name) for name in names} | changes
    return save({name: t.contiguous() for name, t in found.items() if t is not None})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: p.unlink(), "cannot read"),
        (lambda p: p.write_bytes(b"no archive"), "no zip archive"),
        (lambda p: p.write_bytes(p.read_bytes()[:-200]), "no zip archive"),
        (lambda p: rewritten(p, {}, {"../../evil.py": b"x"}), "members"),
        (lambda p: rewritten(p, {}, {"weights.pkl": b"x"}), "members"),
        (lambda p: rewritten(p, {TENSORS: None}), "members"),
        (lambda p: rewritten(p, {DOCUMENT: b"{"}), "not in the format"),
        (lambda p: rewritten(p, {DOCUMENT: b"[]"}), "Expected `object`, got `array`"),
        (lambda p: rewritten(p, {DOCUMENT: document(p, schema_version=2)}), "schema_version"),
        (
            lambda p: rewritten(p, {DOCUMENT: document(p, seen={})}),
            "required field `status`",
        ),
        (lambda p: rewritten(p, {DOCUMENT: document(p, candidate=3)}), "Expected `str`, got `int`"),
        (lambda p: rewritten(p, {DOCUMENT: document(p, config={})}), "not in the format"),
        (lambda p: rewritten(p, {DOCUMENT: b"x" * (LARGEST[DOCUMENT] + 1)}), "larger than 4 MiB"),
        (lambda p: rewritten(p, {TENSORS: b"\x80\x04K\x01."}), "not in the format"),
        (lambda p: rewritten(p, {TENSORS: tensors(responses=None)}), "not in the format"),
        (lambda p: rewritten(p, {TENSORS: tensors(responses=torch.full((4, 6), 99))}), "responses"),
        (lambda p: rewritten(p, {TENSORS: tensors(response_mask=torch.ones(4))}), "response_mask"),
        (
            lambda p: rewritten(p, {TENSORS: tensors(student_logits=torch.ones(3))}),
            "student_logits",
        ),
    ],
)
def test_a_damaged_or_hostile_bundle_is_refused(damage, words, bundle, tmp_path):
    path = tmp_path / "in" / "b.zip"
    write(path, bundle)
    damage(path)
    with pytest.raises(BundleError, match=words) as caught:
        read(path)
    assert len(str(caught.value).splitlines()) == 1
    assert {p.name for p in tmp_path.rglob("*")} <= {"in", "b.zip"}


def test_a_bomb_is_not_unpacked(bundle, tmp_path):
    path = tmp_path / "b.zip"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(DOCUMENT, b"0" * (LARGEST[DOCUMENT] * 8))
        archive.writestr(TENSORS, b"")
    path.write_bytes(buffer.getvalue())
    with pytest.raises(BundleError, match="larger than"):
        read(path)


@pytest.fixture(scope="module")
def goldens(tmp_path_factory):
    return subset(tmp_path_factory.mktemp("bundled"), ("P-L018", "P-L030"))


def made(goldens, folder, attribute, count=1):
    ids = ["P-L018", "P-L030"]
    cases = tuple((id_, None) for id_ in ids)
    name = f"{CANDIDATES}:{attribute}"
    return make(BundlesRequest(name, (str(goldens),), "c", cases, str(folder), count)).bundles


def test_a_failing_case_is_packed_small_and_replays_with_the_same_verdict(goldens, tmp_path):
    (row,) = made(goldens, tmp_path, "off_by_a_percent")
    assert row.after[:2] == [1, 1]
    assert row.after[2] < row.before[2]
    path = tmp_path / Path(row.file).name
    again = replay(ReplayRequest(str(path)))
    assert (again.verdict, again.exit_code, again.replay) == ("DIVERGENT", 1, "same")
    assert again.environment_differs == {}
    assert replay_text(again).startswith(f"DIVERGENT candidate={CANDIDATES}:off_by_a_percent case=")
    assert made(goldens, tmp_path / "2", "off_by_a_percent") == [row]
    assert (tmp_path / "2" / path.name).read_bytes() == path.read_bytes()
    repaired = replay(ReplayRequest(str(path), f"{CANDIDATES}:correct"))
    assert (repaired.verdict, repaired.exit_code) == ("PASS", 0)
    assert repaired.replay == "different"
    assert "replay=different" in replay_text(repaired).splitlines()[0]


@pytest.mark.parametrize(
    ("content", "words"), [(b"no archive", "is no zip archive"), (None, "cannot read")]
)
def test_the_command_refuses_with_one_line(content, words, tmp_path, capsys, monkeypatch):
    """Without starting a process."""
    monkeypatch.delattr(again, "run_child")
    path = tmp_path / "b.zip"
    if content is not None:
        path.write_bytes(content)
    assert replay_one(path, "", as_json=False) == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("ERROR ")
    assert words in line


def test_what_only_the_process_can_refuse_is_one_line_too(tmp_path, capsys):
    path = tmp_path / "b.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", "b")
    assert replay_one(path, "", as_json=False) == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("ERROR ")
    assert "members" in line


def test_a_failure_by_exception_keeps_its_kind(goldens, tmp_path):
    (row,) = made(goldens, tmp_path, "raises")
    assert row.after == [1, 1, 2]
    again = replay(ReplayRequest(str(tmp_path / Path(row.file).name)))
    assert (again.verdict, again.replay) == ("ERROR", "same")
