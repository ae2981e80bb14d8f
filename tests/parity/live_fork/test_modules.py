"""Importing the checkout's modules: what is missing is named, in one line and together."""

import sys

import pytest

from sdpo.parity.live_fork import modules
from sdpo.parity.live_fork.checkout import CheckoutError
from sdpo.parity.live_fork.modules import check_packages, live_function, live_module


def test_all_missing_packages_are_named_with_what_pip_calls_them(monkeypatch):
    known = {"hydra": "hydra-core", "torch": "torch", "absent_pkg": "absent-pkg"}
    monkeypatch.setattr(modules, "PACKAGES", known | {"hydra": "hydra-core", "nil": "nil"})
    monkeypatch.setattr(modules, "_installed", lambda name: name == "torch")
    with pytest.raises(CheckoutError) as caught:
        check_packages()
    assert str(caught.value) == (
        "the checkout needs packages hydra-core, absent-pkg, nil: "
        "pip install hydra-core absent-pkg nil"
    )


def test_nothing_is_said_where_nothing_is_missing(monkeypatch):
    monkeypatch.setattr(modules, "PACKAGES", {"torch": "torch"})
    check_packages()


def written(tmp_path, monkeypatch, text):
    (tmp_path / "one_module.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "one_module", raising=False)
    return "one_module"


def test_transformers_5_has_the_old_name_of_a_class_while_the_fork_is_imported(
    tmp_path, monkeypatch
):
    transformers = type(sys)("transformers")
    transformers.AutoModelForImageTextToText = "renamed"
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    monkeypatch.setattr(modules, "_installed", lambda name: True)
    text = "from transformers import AutoModelForVision2Seq as old\n"
    assert live_module(written(tmp_path, monkeypatch, text)).old == "renamed"
    assert not hasattr(transformers, "AutoModelForVision2Seq")


def test_a_function_that_is_not_there_tells_another_verl(tmp_path, monkeypatch):
    name = written(tmp_path, monkeypatch, "class A:\n    def f(self): ...\n")
    assert live_function(name, "A.f").__name__ == "f"
    with pytest.raises(CheckoutError, match=r"one_module has no A\.g: another verl"):
        live_function(name, "A.g")


def test_a_module_of_verl_that_is_not_there_tells_another_verl(tmp_path, monkeypatch):
    name = written(tmp_path, monkeypatch, "import verl_absent.x\n")
    with pytest.raises(CheckoutError, match="needs the package verl_absent: pip install"):
        live_module(name)


def test_a_package_of_another_version_is_named_with_what_helps(tmp_path, monkeypatch):
    name = written(tmp_path, monkeypatch, "from json import absent_name\n")
    why = "cannot import name 'absent_name' from 'json'"
    message = rf"needs another version of json \({why}\): pip install --upgrade json$"
    with pytest.raises(CheckoutError, match=message):
        live_module(name)
