"""pass@1 of a model comes with what it was measured with."""

from sdpo.benchmark.runs.evaluate_model import measure_model
from sdpo.benchmark.runs.settings import load


def test_plain_prompts_are_counted_with_their_results():
    settings = load("sdpo", ["eval.limit=2", "eval.samples=2", "eval.max_new_tokens=2"])
    document = measure_model(settings, with_help=False)
    (row,) = document["rows"]
    assert (row["prompt"], row["attempts"], row["pass_at_1"]) == ("plain", 4, 0)
    tasks = [result["task_id"] for result in document["results"]]
    assert tasks == [11, 11, 12, 12]
    assert document["data"]["split"] == "test"
    assert document["settings"]["eval"]["limit"] == 2
    assert document["isolation"]
