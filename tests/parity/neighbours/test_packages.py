"""The table of neighbours names wrappers that there are, and says how a package is installed."""

import importlib.util
import re
import sys

import pytest

from sdpo.parity.neighbours import packages
from sdpo.parity.neighbours.packages import attribute_of, function_alone, neighbours


def test_each_candidate_is_a_module_of_this_room():
    for row in neighbours().values():
        module, attribute = row.candidate.split(":")
        assert importlib.util.find_spec(module), module
        assert attribute
        assert row.link.startswith("https://")


def test_a_package_is_pinned_and_a_repository_has_a_commit():
    for row in neighbours().values():
        if row.repository:
            assert not row.install
            assert re.fullmatch("[0-9a-f]{40}", row.version)
        else:
            assert row.install[0].endswith(f"=={row.version}")


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("ms-swift", "pip install --no-deps --target DIR ms-swift==4.6.0, and put DIR on PYTHON"),
        ("claas", "clone https://github.com/kfallah/CLaaS at 34fa0608"),
    ],
)
def test_an_absent_package_is_named_with_what_installs_it(monkeypatch, name, fix):
    top = neighbours()[name].module.partition(".")[0]
    monkeypatch.setitem(sys.modules, top, None)
    with pytest.raises(ImportError, match=f"{name} cannot be imported .*{re.escape(fix)}"):
        attribute_of(name)


def test_an_absent_file_is_named_with_what_brings_it(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ImportError, match=r"areno-opd is not on the path, there is no areno.*opd"):
        function_alone("areno-opd", {})


@pytest.mark.parametrize(("text", "count"), [("", 0), ("def opd_loss_fn(): 1\n" * 2, 2)])
def test_a_file_must_have_the_function_once(monkeypatch, tmp_path, text, count):
    file = tmp_path / "areno" / "api" / "loss_fns" / "opd.py"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ImportError, match=f"has {count} functions 'opd_loss_fn', expected one"):
        function_alone("areno-opd", {})


def test_the_table_is_read_once():
    assert packages.neighbours() is packages.neighbours()
