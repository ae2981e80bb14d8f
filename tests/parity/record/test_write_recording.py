"""A recording is written as a whole or not at all, and compared with what is there."""

import pytest
import torch

from sdpo.fixtures import load_family
from sdpo.parity.record import write_recording as module
from sdpo.parity.record.recipes import Recipe, recording
from sdpo.parity.record.write_recording import differences, write_recording


def made(case_id="A", loss=1.5):
    recipe = Recipe(
        "loss",
        {"id": case_id, "tags": [], "config": {"alpha": 0.5}},
        {"in.responses": torch.tensor([[1, 2]])},
    )
    return recording(recipe, {"out.loss": torch.tensor(loss)}, {"loss": loss})


def write(folder, *cases):
    write_recording(folder, {"loss": cases}, {"reference_commit": "c"}, "some")


def test_what_is_written_is_read_by_the_loader(tmp_path):
    write(tmp_path / "new" / "folder", made(), made("B", float("inf")))
    family = load_family(tmp_path / "new" / "folder", "loss")
    assert family.manifest["provenance"] == {"reference_commit": "c"}
    assert (family.manifest["set"], family.manifest["case_count"]) == ("some", 2)
    assert family.case("A").tensors()["out.loss"].item() == 1.5
    assert family.case("B").entry["loss"] == "inf"
    assert family.case("B").entry["tensors"] == {
        "in.responses": ["int64", [1, 2]],
        "out.loss": ["float32", []],
    }


def test_differences_are_listed_case_by_case(tmp_path):
    write(tmp_path / "r", made(), made("B"))
    assert differences(tmp_path / "r", {"loss": [made(), made("B")]}) == []
    assert differences(tmp_path / "r", {"loss": [made("A", 2.0), made("C")]}) == [
        "A differs in loss, sha256",
        "B is not recorded any more",
        "C is new",
    ]


def test_a_damaged_file_differs(tmp_path):
    write(tmp_path / "r", made())
    (tmp_path / "r" / "loss" / "A.safetensors").write_bytes(b"x")
    (line,) = differences(tmp_path / "r", {"loss": [made()]})
    assert "the file is damaged or was changed" in line


def test_a_full_disk_leaves_nothing_and_keeps_what_was_there(tmp_path, monkeypatch):
    write(tmp_path / "r", made())

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "manifest_of", full)
    for folder in ("r", "other", "deep/er"):
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path / folder, made("B"))
    assert [path.name for path in tmp_path.iterdir()] == ["r"]
    assert differences(tmp_path / "r", {"loss": [made()]}) == []


def test_an_older_recording_is_replaced_as_a_whole(tmp_path):
    write(tmp_path / "r", made(), made("B"))
    write(tmp_path / "r", made("C"))
    assert sorted(path.name for path in (tmp_path / "r" / "loss").iterdir()) == [
        "C.safetensors",
        "cases.json",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["r"]
