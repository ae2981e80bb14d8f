"""A package that is missing or of another version is refused, with what installs it."""

from types import SimpleNamespace
from typing import Any

import pytest

from sdpo.parity.cases.checked_call import CandidateError, NotCoveredError
from sdpo.parity.trainers.recording.installed import (
    as_candidate_errors,
    check_installed,
    check_ready,
)


def adapter(**fields: Any) -> Any:
    usual = {"name": "mine", "package": "", "versions": "", "install": "", "imports": ()}
    return SimpleNamespace(**usual | fields)


def test_a_loop_of_ones_own_needs_no_package():
    check_installed(adapter())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"package": "no-such"}, "'no-such' is not installed: pip install 'no-such'"),
        ({"package": "no-such", "install": "x"}, "pip install x"),
        ({"package": "torch", "versions": "<1"}, "written for torch<1.*pip install 'torch<1'"),
    ],
)
def test_what_is_missing_or_too_new_is_refused(fields, message):
    with pytest.raises(CandidateError, match=message):
        check_installed(adapter(**fields))


def test_a_module_that_cannot_be_imported_is_named():
    with pytest.raises(CandidateError, match="mine needs the package 'no_such_module'"):
        check_ready(adapter(imports=("json", "no_such_module")))


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (SystemExit(3), CandidateError, "mine could not be trained: SystemExit: 3; versions"),
        (ValueError("a\n  b"), CandidateError, "ValueError: a b; versions"),
        (RuntimeError(), CandidateError, "RuntimeError: no message; versions"),
        (NotCoveredError("no"), NotCoveredError, "no"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_whatever_a_trainer_raises_is_its_failure_but_not_the_users_ctrl_c(
    error, expected, message
):
    with pytest.raises(expected, match=message), as_candidate_errors(adapter(), "trained"):
        raise error
