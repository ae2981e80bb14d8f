"""The table of a model's memory: what was measured, or why it was not."""

from sdpo.benchmark.performance.model_memory import table
from sdpo.benchmark.performance.tables import Row


def test_a_row_that_failed_says_why():
    measured: Row = {"teacher": "ema", "loss": "fused", "generation": 1.5, "learning": 2.0}
    measured |= {"loaded_mib": 10.0, "peak_mib": 20.4, "value": 1e-3}
    failed: Row = {"teacher": "ema", "loss": "logits", "error": "not within 120 s"}
    lines = table("tiny", 1234, [measured, failed]).splitlines()
    assert lines[0] == "tiny: 1,234 parameters"
    assert lines[-2:] == [
        "| ema | fused | 1.50 | 2.000 | 10 | 20 | 1.0e-03 |",
        "| ema | logits | not within 120 s |  |  |  |  |",
    ]
