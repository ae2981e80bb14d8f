"""Hooks tell of calls, are put back, and complain where they never fire."""

from types import SimpleNamespace
from typing import Any

import pytest

from sdpo.parity.cases.checked_call import CandidateError
from sdpo.parity.trainers.recording.hooks import Watch, installed_versions


def holder() -> Any:
    def power(base, exponent=2):
        return base**exponent

    return SimpleNamespace(power=power, __name__="module")


def test_a_call_is_told_with_all_arguments_by_name_and_its_result():
    module, calls = holder(), []
    with Watch() as watch:
        watch.function(module, "power", lambda given, result: calls.append((given, result)))
        assert module.power(3) == 9
        assert module.power(exponent=3, base=2) == 8
    assert calls == [({"base": 3, "exponent": 2}, 9), ({"base": 2, "exponent": 3}, 8)]


def test_what_was_replaced_is_put_back_also_on_an_instance_without_it():
    class Model:
        def generate(self):
            return "real"

    module, model = holder(), Model()
    original = module.power
    with Watch() as watch:
        watch.function(module, "power", lambda given, result: None)
        watch.replace(model, "generate", lambda: "scripted")
        assert model.generate() == "scripted"
    assert module.power is original
    assert "generate" not in vars(model)
    assert model.generate() == "real"


def test_a_function_that_is_gone_is_refused():
    with Watch("torch") as watch, pytest.raises(CandidateError, match=r"module.root.*no such"):
        watch.function(holder(), "root", lambda given, result: None)


def test_a_required_hook_that_never_fires_is_an_error_and_others_are_not():
    with Watch() as watch:
        watch.function(holder(), "power", lambda given, result: None, required=False)
        watch.check()
        watch.expect("end of a step")
        with pytest.raises(CandidateError, match="hook end of a step did not fire"):
            watch.check()
        watch.calls["end of a step"] += 1
        watch.check()


def test_a_package_that_is_not_installed_is_left_out():
    assert installed_versions("no-such-package").startswith("trl ")
