"""Faults of the catalogue outside the loss that no other test plants."""

import sys
from pathlib import Path

import pytest

from sdpo import update
from sdpo.parity.faults import BY_ID

sys.path.insert(0, str(Path(__file__).parents[1] / "equivalence"))
cases = pytest.importorskip("update_cases", reason="runners of recorded updates")


def test_accumulation_scaled_twice(monkeypatch):
    """M12: accumulation scaled twice."""
    plan = update.plan

    def scaled_twice(*arguments):
        return [[(rows, scale**2) for rows, scale in step] for step in plan(*arguments)]

    monkeypatch.setattr(update, "plan", scaled_twice)
    run = cases.run_ours("P-U002")
    found = cases.tensor_differences(
        "P-U002", run, exact=False, counted_only=True, skip=("old_log_probs_used", "entropy")
    )
    found += cases.metric_differences(
        "P-U002", run, exact=False, names=["actor/grad_norm", "actor/pg_loss"]
    )
    assert cases.first_stage("P-U002", found) == BY_ID["M12"].stage
