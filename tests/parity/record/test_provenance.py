"""What a manifest says of how it was recorded."""

import hashlib
from pathlib import Path

from sdpo.parity.live_fork.checkout import COMMIT, Checkout
from sdpo.parity.record.launch import KERNELS
from sdpo.parity.record.provenance import provenance


def test_a_clean_checkout_is_named_by_its_commit_alone(monkeypatch):
    for name, value in KERNELS.items():
        monkeypatch.setenv(name, value)
    told = provenance(Checkout(Path(), COMMIT))
    assert told["reference_commit"] == COMMIT
    assert told["kernels"] == KERNELS
    assert not told.keys() & {"modified", "diff_sha256"}


def test_changed_files_and_the_hash_of_their_diff_are_named():
    told = provenance(Checkout(Path(), COMMIT, ("verl/a.py",), "+x"))
    assert told["modified"] == ["verl/a.py"]
    assert told["diff_sha256"] == hashlib.sha256(b"+x").hexdigest()
