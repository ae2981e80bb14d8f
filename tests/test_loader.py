"""Golden data that are missing, damaged or malformed give one clear error, never a value."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from sdpo.fixtures import PACKAGED, GoldenDataError, load_families, load_family


@pytest.fixture
def folder(tmp_path):
    """A small copy of the packaged loss data: two cases."""
    home = tmp_path / "goldens" / "loss"
    home.mkdir(parents=True)
    manifest = json.loads((PACKAGED / "loss" / "cases.json").read_text())
    manifest["cases"] = manifest["cases"][:2]
    (home / "cases.json").write_text(json.dumps(manifest))
    for entry in manifest["cases"]:
        shutil.copy(PACKAGED / "loss" / entry["file"], home)
    return home


def rewrite(folder, change):
    path = folder / "cases.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def first_tensors(folder):
    return next(iter(load_family(folder, "loss"))).tensors()


def test_packaged_data_are_whole():
    counts = {family.name: len(family) for family in load_families(PACKAGED)}
    assert counts == {"loss": 148, "reprompt": 63, "update": 47}
    for family in load_families(PACKAGED):
        for case in family:
            assert list(case.tensors()) == list(case.entry["tensors"]), "in manifest order"


def test_packaged_data_stay_small():
    size = sum(path.stat().st_size for path in PACKAGED.rglob("*") if path.is_file())
    assert size < 16_000_000


def test_whole_folder_and_single_family_are_both_found(folder):
    assert [f.name for f in load_families(folder)] == ["loss"]
    assert [f.name for f in load_families(folder.parent)] == ["loss"]


def damage_bytes(folder):
    path = folder / "P-L001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def truncate(folder):
    path = folder / "P-L001.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def remove(folder):
    (folder / "P-L001.safetensors").unlink()


def other_dtype(folder):
    rewrite(folder, lambda m: m["cases"][0]["tensors"].update({"in.responses": ["int32", [2, 6]]}))


def other_shape(folder):
    rewrite(folder, lambda m: m["cases"][0]["tensors"].update({"in.responses": ["int64", [2, 7]]}))


def unknown_dtype(folder):
    rewrite(folder, lambda m: m["cases"][0]["tensors"].update({"in.responses": ["int4", [2, 6]]}))


def tensor_not_listed(folder):
    rewrite(folder, lambda m: m["cases"][0]["tensors"].pop("out.loss"))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (damage_bytes, "sha256"),
        (truncate, "sha256"),
        (remove, "cannot read"),
        (other_dtype, "in.responses"),
        (other_shape, "in.responses"),
        (unknown_dtype, "in.responses"),
        (tensor_not_listed, "out.loss"),
    ],
)
def test_harm_to_a_case_is_one_clear_error(folder, harm, words):
    first_tensors(folder)
    harm(folder)
    with pytest.raises(GoldenDataError, match=words) as caught:
        first_tensors(folder)
    assert "\n" not in str(caught.value)


def test_file_that_is_no_safetensors_but_has_the_checksum(folder):
    import hashlib

    path = folder / "P-L001.safetensors"
    path.write_bytes(b"nonsense")
    digest = hashlib.sha256(b"nonsense").hexdigest()
    rewrite(folder, lambda m: m["cases"][0].update(sha256=digest))
    with pytest.raises(GoldenDataError, match="not a safetensors file"):
        first_tensors(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(cases=[]), "no cases"),
        (lambda m: m.update(cases={}), "no cases"),
        (lambda m: m.update(family="update"), "family"),
        (lambda m: m["cases"][0].pop("sha256"), "sha256"),
        (lambda m: m["cases"][1].update(id="P-L001"), "repeats"),
        (lambda m: m["cases"].append("x"), "case 2"),
    ],
)
def test_malformed_manifest(folder, change, words):
    rewrite(folder, change)
    with pytest.raises(GoldenDataError, match=words):
        load_family(folder, "loss")


def test_manifest_that_is_not_json(folder):
    (folder / "cases.json").write_text("{")
    with pytest.raises(GoldenDataError, match="not JSON"):
        load_families(folder)


@pytest.mark.parametrize("name", ["absent", "empty"])
def test_folder_without_data(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(GoldenDataError):
        load_families(tmp_path / name)


def test_path_that_leaves_the_folder_is_refused(folder):
    rewrite(folder, lambda m: m["cases"][0].update(file="../../secret"))
    with pytest.raises(GoldenDataError, match="file name"):
        load_family(folder, "loss")


def test_changed_value_with_matching_checksum_is_loaded_as_it_is(folder):
    """The loader proves integrity, not truth: a consistent change is found by the audit."""
    import hashlib

    path = folder / "P-L001.safetensors"
    tensors = load_file(path)
    tensors["out.loss"] = tensors["out.loss"] + 1
    save_file(tensors, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    rewrite(folder, lambda m: m["cases"][0].update(sha256=digest))
    assert first_tensors(folder)["out.loss"] > 1
