"""Measures pass@1 of a model by the settings of a configuration, for `sdpo mbpp eval`."""

from collections.abc import Sequence
from typing import Any, TypedDict

import msgspec

from sdpo.benchmark.embedded.value_of_help import PromptRate, measure
from sdpo.benchmark.problems.dataset import DataStamp
from sdpo.benchmark.problems.prompts import load_data
from sdpo.benchmark.runs.environment import RunEnvironment, describe
from sdpo.benchmark.runs.settings import Settings
from sdpo.benchmark.scoring.executor import Executor
from sdpo.benchmark.scoring.pass_at_1 import Scored, Summary, evaluate


class PlainRate(PromptRate, Summary):
    """Gives pass@1 of plain prompts, with all that `evaluate` says of them."""


class ModelEvaluation(TypedDict):
    """Holds pass@1 with each kind of prompt, every result, and what they were measured with."""

    rows: Sequence[PromptRate]
    results: list[Scored]
    settings: dict[str, Any]
    data: DataStamp
    isolation: list[str]
    environment: RunEnvironment


def measure_model(settings: Settings, *, with_help: bool) -> ModelEvaluation:
    """Measure a model.

    Args:
        settings: `model`, `data`, `eval` and `reward` are read.
        with_help: also with demonstrations and feedback in the prompt.
    """
    from sdpo.benchmark.runs.models import check_hardware, load_model, load_tokenizer
    from sdpo.settings.determinism import deterministic

    check_hardware(settings)
    data = load_data(settings.data.name).only(settings.data.eval_split)
    tokenizer = load_tokenizer(settings.model.name)
    with (
        deterministic(settings.seed, settings.threads),
        Executor(settings.reward.workers, timeout=settings.reward.timeout) as executor,
    ):
        model = load_model(settings.model)
        arguments = model, tokenizer, data.problems, executor, settings.data, settings.eval
        rows: Sequence[PromptRate]
        if with_help:
            rows, results = measure(*arguments), []
        else:
            summary, results = evaluate(*arguments)
            attempts = summary["problems"] * summary["samples"]
            rows = [PlainRate(prompt="plain", attempts=attempts, **summary)]
        isolation = list(executor.isolation)
    return {
        "rows": rows,
        "results": results,
        "settings": msgspec.to_builtins(settings),
        "data": data.stamp,
        "isolation": isolation,
        "environment": describe(),
    }
