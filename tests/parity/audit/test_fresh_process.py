"""A case run alone in a process of its own."""

import os
import tempfile

import pytest

from sdpo.fixtures import packaged_family
from sdpo.parity.audit.fresh_process import Alone
from sdpo.parity.candidates.implementations import Own
from sdpo.parity.cases.loss_case import loss_cases


class Ends(Own):
    """Ends every process but the one that made it."""

    def __init__(self):
        self.home = os.getpid()

    def trace(self, case):
        if os.getpid() != self.home:
            os._exit(3)
        return super().trace(case)


class Counts(Own):
    """Gives other numbers at each call."""

    calls = 0

    def trace(self, case):
        self.calls += 1
        found = super().trace(case)
        return {**found, "aggregate": found["aggregate"] + self.calls}


@pytest.mark.parametrize(
    ("kind", "doubt"), [(Own, ""), (Ends, "ends differently"), (Counts, "keeps state")]
)
def test_a_case_alone(kind, doubt, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    candidate, case = kind(), loss_cases(packaged_family("loss"))[0]
    alone = Alone(candidate, case)
    assert not list(tmp_path.iterdir()), "what has a name is left if the process is ended"
    candidate.trace(case)
    found = " ".join(alone.doubt())
    assert doubt in found
    assert bool(found) == bool(doubt)
