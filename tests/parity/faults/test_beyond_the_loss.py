"""Faults of the catalogue outside the loss that no other test plants."""

from sdpo.parity.faults.catalogue import BY_ID
from sdpo.update import actor_update
from tests.helpers.recorded import update_cases as cases


def test_accumulation_scaled_twice(monkeypatch):
    """M12: accumulation scaled twice."""
    plan = actor_update.plan

    def scaled_twice(*arguments):
        return [[(rows, scale**2) for rows, scale in step] for step in plan(*arguments)]

    monkeypatch.setattr(actor_update, "plan", scaled_twice)
    run = cases.run_ours("P-U002")
    found = cases.tensor_differences(
        "P-U002", run, exact=False, counted_only=True, skip=("old_log_probs_used", "entropy")
    )
    found += cases.metric_differences(
        "P-U002", run, exact=False, names=["actor/grad_norm", "actor/pg_loss"]
    )
    assert cases.first_stage("P-U002", found) == BY_ID["M12"].stage
