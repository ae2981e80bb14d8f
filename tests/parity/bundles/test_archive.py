"""Archives: the same members give the same bytes, and others than expected are refused."""

import zipfile

import pytest

from sdpo.parity.bundles.archive import BundleError, member_names, read_archive, write_archive


def test_members_are_read_as_they_were_written_and_have_the_same_bytes(tmp_path):
    members = {"a": b"1", "b": b"22"}
    for name in ("first.zip", "second.zip"):
        write_archive(tmp_path / "new" / name, members)
    first, second = (tmp_path / "new" / name for name in ("first.zip", "second.zip"))
    assert first.read_bytes() == second.read_bytes()
    assert read_archive(first, {"a": 100, "b": 100}) == members
    assert member_names(first) == ["a", "b"]


def test_a_missing_or_further_member_is_refused(tmp_path):
    write_archive(tmp_path / "b.zip", {"a": b"1"})
    for expected in ({"a": 100, "b": 100}, {"b": 200}):
        with pytest.raises(BundleError, match=r"members \['a'\], expected"):
            read_archive(tmp_path / "b.zip", expected)


def test_a_member_is_read_up_to_its_limit_only(tmp_path):
    path = tmp_path / "b.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a", bytes(3 * 2**20))
    assert path.stat().st_size < 2**20
    with pytest.raises(BundleError, match="a is larger than 2 MiB"):
        read_archive(path, {"a": 2 * 2**20})


def test_a_file_that_is_no_archive_has_no_members(tmp_path):
    (tmp_path / "b.zip").write_bytes(b"no archive")
    assert member_names(tmp_path / "b.zip") == member_names(tmp_path / "absent") == []
    with pytest.raises(BundleError, match="no zip archive"):
        read_archive(tmp_path / "b.zip", {"a": 100})
    with pytest.raises(BundleError, match="cannot read"):
        read_archive(tmp_path / "absent", {"a": 100})
