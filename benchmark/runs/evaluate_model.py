"""pass@1 of a model as it is, by the settings of a configuration: behind `sdpo mbpp eval`."""

from typing import Any

import msgspec

from sdpo.benchmark.problems.prompts import load_data
from sdpo.benchmark.runs.environment import describe
from sdpo.benchmark.runs.settings import Settings
from sdpo.benchmark.scoring.executor import Executor


def measure_model(settings: Settings, *, with_help: bool) -> dict[str, Any]:
    """Measure a model.

    Args:
        settings: `model`, `data`, `eval` and `reward` are read.
        with_help: also with demonstrations and feedback in the prompt.

    Returns:
        `rows` as of `sdpo.benchmark.embedded.value_of_help.row`, and what they were measured with.
    """
    from sdpo.benchmark.embedded.value_of_help import measure
    from sdpo.benchmark.runs.models import check_hardware, load_model, load_tokenizer
    from sdpo.benchmark.scoring.pass_at_1 import evaluate
    from sdpo.settings.determinism import deterministic

    check_hardware(settings)
    data = load_data(settings.data.name).only(settings.data.eval_split)
    tokenizer = load_tokenizer(settings.model.name)
    with (
        deterministic(settings.seed, settings.threads),
        Executor(settings.reward.workers, timeout=settings.reward.timeout) as executor,
    ):
        model = load_model(settings.model)
        asked = model, tokenizer, data.problems, executor, settings.data, settings.eval
        if with_help:
            rows, results = measure(*asked), []
        else:
            summary, results = evaluate(*asked)
            attempts = summary["problems"] * summary["samples"]
            rows = [{"prompt": "plain", "attempts": attempts, **summary}]
        isolation = list(executor.isolation)
    return {
        "rows": rows,
        "results": results,
        "settings": msgspec.to_builtins(settings),
        "data": data.stamp,
        "isolation": isolation,
        "environment": describe(),
    }
