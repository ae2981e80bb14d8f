"""Both teacher-prompt implementations against the recorded reference.

Budget: none. Texts, ids, masks, positions and metrics must be equal, float32 metrics included.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sdpo.fixtures.loader import GoldenCase
from sdpo.prompt import teacher_tokens
from sdpo.prompt.demonstrations import remove_thinking
from sdpo.reference import teacher_prompt as reference
from tests.helpers.recorded.reprompt_records import (
    CASES,
    FAMILY,
    IMPLEMENTATIONS,
    Record,
    departures,
    first_departure,
    new_tokenizer,
    run_reference,
    run_sdpo,
)

pytestmark = pytest.mark.filterwarnings("ignore::sdpo.prompt.demonstrations.RepromptWarning")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return new_tokenizer()


# The recording itself


def test_all_recorded_cases_are_here():
    assert len(CASES) == FAMILY.manifest["case_count"] == 63


@pytest.mark.parametrize("name", sorted(FAMILY.manifest["tokenizer_files"]))
def test_tokenizer_is_the_recorded_one(name: str):
    data = (FAMILY.folder / "tokenizer" / name).read_bytes()
    assert hashlib.sha256(data).hexdigest() == FAMILY.manifest["tokenizer_files"][name]


# Both implementations reproduce it


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("run", IMPLEMENTATIONS.values(), ids=IMPLEMENTATIONS.keys())
def test_recorded_case(run: Callable[..., Record | None], case: GoldenCase, tokenizer: Any):
    record = run(case, tokenizer)
    assert (record is None) == case.entry["outputs"]["returns_none"]
    if record is not None:
        assert departures(record, case, tokenizer) == []


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_stage_agrees_between_the_two(case: GoldenCase, tokenizer: Any):
    assert first_departure(run_sdpo(case, tokenizer), run_reference(case, tokenizer)) is None


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_untruncated_lengths(case: GoldenCase, tokenizer: Any):
    outputs = case.entry["outputs"]
    if outputs["returns_none"]:
        return
    kwargs = case.config["apply_chat_template_kwargs"]
    prompts = teacher_tokens.prompt_ids(outputs["teacher_messages"], tokenizer, kwargs)
    assert [len(ids) for ids in prompts] == outputs["untruncated_prompt_tokens"]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_reference_makes_the_recorded_call(
    case: GoldenCase, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
):
    calls = []
    render = tokenizer.apply_chat_template

    def spy(messages: Any, **arguments: Any) -> Any:
        calls.append(arguments)
        return render(messages, **arguments)

    monkeypatch.setattr(tokenizer, "apply_chat_template", spy)
    run_reference(case, tokenizer)
    recorded = case.entry["outputs"].get("chat_template_call")
    assert calls == ([] if recorded is None else [recorded])


@pytest.mark.parametrize("pair", FAMILY.manifest["thinking_removal"], ids=lambda p: repr(p["text"]))
@pytest.mark.parametrize("remove", [reference.remove_thinking, remove_thinking])
def test_thinking_removal(remove: Callable[[str], str], pair: dict[str, str]):
    assert remove(pair["text"]) == pair["result"]


# The reference raises what was recorded

ERROR_CALLS: dict[str, dict[str, Any]] = {
    "reprompt_truncation = 'error' with prompts far below max_reprompt_len": {
        "settings": {"reprompt_truncation": "error"}
    },
    "reprompt_template with an unknown named slot": {
        "settings": {"reprompt_template": "{prompt}{problem}"}
    },
    "reprompt_template with an empty positional slot": {
        "settings": {"reprompt_template": "{prompt}{}"}
    },
    "solution_template with an unmatched brace": {
        "settings": {"solution_template": "{successful_previous_attempt"}
    },
    "feedback value is None instead of a list": {"reward_extra_infos": {"feedback": None}},
    "feedback holds a two-element array for one row": {
        "reward_extra_infos": {"feedback": [np.array([1, 2]), "", "", ""]}
    },
    "chat template arguments None (treated as empty)": {"apply_chat_template_kwargs": None},
}


def test_every_recorded_error_is_called():
    assert ERROR_CALLS.keys() == {entry["condition"] for entry in FAMILY.manifest["error_cases"]}


@pytest.mark.parametrize(
    "entry", FAMILY.manifest["error_cases"], ids=lambda entry: entry["condition"]
)
def test_reference_raises_as_recorded(entry: dict[str, Any]):
    arguments = ERROR_CALLS[entry["condition"]]
    case = CASES["P-R011"]  # feedback and one success: every template is needed
    if entry["raises"] is None:
        assert run_reference(case, new_tokenizer(), **arguments) is not None
        return
    with pytest.raises(Exception) as raised:  # noqa: PT011 (the class is what is compared)
        run_reference(case, new_tokenizer(), **arguments)
    assert type(raised.value).__name__ == entry["raises"]
    assert [base.__name__ for base in type(raised.value).__mro__[1:-1]] == entry["base_classes"]


def test_missing_truncation_key_means_error():
    tokenizer = new_tokenizer()
    reference.set_tokenizer_sides(tokenizer, {})
    assert (tokenizer.padding_side, tokenizer.truncation_side) == ("left", "error")


def test_an_empty_conversation_is_refused_before_wrong_feedback(tokenizer: Any):
    """Of two faults of a batch the reference finds that of the prompts first."""
    one = torch.ones(1, 1, dtype=torch.long)
    wrong_feedback: Any = {"feedback": None}
    with pytest.raises(IndexError):
        reference.build_teacher_batch(
            one,
            one,
            one.float(),
            [[]],
            ["u"],
            wrong_feedback,
            tokenizer,
            loss_mode="sdpo",
            self_distillation={"include_environment_feedback": True},
        )
