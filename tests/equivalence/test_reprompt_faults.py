"""The comparison of teacher prompts can fail: each planted fault is found, at the stage it is in.

Every fault is planted into the readable implementation, which then runs over all recorded cases.
The stage-by-stage comparison with the reference must name the fault's own stage in each case that
it changes, and the recorded outputs must differ there too.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

from sdpo.prompt import demonstrations, teacher_batch, teacher_tokens
from tests.helpers.recorded.reprompt_records import (
    CASES,
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


class Fault(NamedTuple):
    """A deviation made by wrapping `module.function`; `change(original, *args, **kwargs)`."""

    stage: str
    function: str
    change: Callable[..., Any]
    module: Any = teacher_batch


def setting(**changes: Any) -> Callable[..., Any]:
    return lambda original, *args, **kwargs: original(*args, **{**kwargs, **changes})


def result(edit: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda original, *args, **kwargs: edit(original(*args, **kwargs))


def each_text(edit: Callable[[str], str]) -> Callable[..., Any]:
    return result(lambda items: [x and x._replace(text=edit(x.text)) for x in items])


def right_padded(teacher: Any, response_width: int) -> Any:
    width = teacher.input_ids.shape[1] - response_width
    order = teacher.attention_mask[:, :width].sort(dim=1, descending=True, stable=True).indices
    ids = teacher.input_ids[:, :width].gather(1, order)
    mask = teacher.attention_mask[:, :width].gather(1, order)
    return teacher._replace(
        input_ids=torch.cat([ids, teacher.input_ids[:, width:]], dim=1),
        attention_mask=torch.cat([mask, teacher.attention_mask[:, width:]], dim=1),
    )


def last_success(original: Any, texts: Any, rewards: Any, uids: Any, **settings: Any) -> Any:
    found = original(texts[::-1], rewards.flip(0), list(uids)[::-1], **settings)[::-1]
    return [x and x._replace(row=len(texts) - 1 - x.row) for x in found]


def score_at_last_token(original: Any, texts: Any, rewards: Any, uids: Any, **settings: Any) -> Any:
    return original(texts, rewards[:, -1:], uids, **settings)


def one_group(original: Any, texts: Any, rewards: Any, uids: Any, **settings: Any) -> Any:
    return original(texts, rewards, [0] * len(uids), **settings)


def within_mask(original: Any, messages: Any, ids: Any, mask: Any, *args: Any, **kw: Any) -> Any:
    return original(messages, ids, (ids != 421).long(), *args, **kw)


def no_clamp(teacher: Any) -> Any:
    return teacher._replace(position_ids=teacher.attention_mask.cumsum(-1) - 1)


def plain_positions(teacher: Any) -> Any:
    columns = torch.arange(teacher.input_ids.shape[1])
    return teacher._replace(position_ids=columns.expand_as(teacher.input_ids))


def restarting_positions(teacher: Any, response_width: int) -> Any:
    positions = teacher.position_ids.clone()
    positions[:, -response_width:] = torch.arange(response_width)
    return teacher._replace(position_ids=positions)


def with_width(edit: Callable[[Any, int], Any]) -> Callable[..., Any]:
    def change(original: Any, messages: Any, responses: Any, *args: Any, **kwargs: Any) -> Any:
        return edit(original(messages, responses, *args, **kwargs), responses.shape[1])

    return change


def keep_role(original: Any, raw_prompt: Any, *args: Any, **kwargs: Any) -> Any:
    built = original(raw_prompt, *args, **kwargs)
    roles = [messages[-1]["role"] for messages in raw_prompt]
    return [[*m[:-1], {**m[-1], "role": r}] for m, r in zip(built, roles, strict=True)]


def filled_twice(original: Any, raw_prompt: Any, *args: Any, **kwargs: Any) -> Any:
    built = original(raw_prompt, *args, **kwargs)
    for messages in built:
        messages[-1]["content"] = messages[-1]["content"].replace("{{", "{").replace("}}", "}")
    return built


def without_header(original: Any, messages: Any, tokenizer: Any, kwargs: Any) -> Any:
    header = original([[]], tokenizer, kwargs)[0]
    return [ids[: -len(header)] for ids in original(messages, tokenizer, kwargs)]


def only_demonstrations(original: Any, shown: Any, feedbacks: Any, **kwargs: Any) -> Any:
    return original(shown, [None] * len(feedbacks), **kwargs)


def float64_scores(original: Any, rewards: Any, threshold: float) -> list[bool]:
    return [score >= threshold for score in rewards.sum(-1).tolist()]


def strictly_above(original: Any, rewards: Any, threshold: float) -> list[bool]:
    return (rewards.sum(-1) > torch.tensor(threshold)).tolist()


def masked_metric(name: str, edit: Callable[..., float]) -> Callable[..., Any]:
    def change(original: Any, *args: Any) -> dict[str, float]:
        return {**original(*args), f"self_distillation/{name}": edit(*args)}

    return change


KEEP_SPECIAL = Fault(
    "response_texts",
    "response_texts",
    lambda original, ids, tokenizer: [tokenizer.decode(row) for row in ids.tolist()],
)
FAULTS = {
    "special tokens kept in response texts": KEEP_SPECIAL,
    "feedback stripped": Fault(
        "feedback", "feedback", result(lambda xs: [x and x.strip() for x in xs])
    ),
    "feedback switch ignored": Fault(
        "feedback", "feedback", setting(include_environment_feedback=True)
    ),
    "feedback never on": Fault("feedback", "feedback", setting(include_environment_feedback=False)),
    "M28 threshold 1.0": Fault(
        "demonstration", "demonstration", setting(success_reward_threshold=1.0)
    ),
    "threshold exclusive": Fault("demonstration", "successes", strictly_above, demonstrations),
    "threshold in float64": Fault("demonstration", "successes", float64_scores, demonstrations),
    "score of the last token only": Fault("demonstration", "demonstration", score_at_last_token),
    "M29 own success reused": Fault(
        "demonstration", "demonstration", setting(dont_reprompt_on_self_success=False)
    ),
    "last success instead of first": Fault("demonstration", "demonstration", last_success),
    "demonstration from another group": Fault("demonstration", "demonstration", one_group),
    "thinking kept": Fault(
        "demonstration", "demonstration", setting(remove_thinking_from_demonstration=False)
    ),
    "demonstration stripped": Fault("demonstration", "demonstration", each_text(str.strip)),
    "empty demonstration skipped": Fault(
        "demonstration",
        "demonstration",
        result(lambda xs: [x if x and x.text else None for x in xs]),
    ),
    "M27 system message dropped": Fault(
        "teacher_prompt",
        "teacher_prompt",
        result(lambda rows: [[m for m in row if m["role"] != "system"] for row in rows]),
    ),
    "history dropped": Fault(
        "teacher_prompt", "teacher_prompt", result(lambda rows: [row[-1:] for row in rows])
    ),
    "last role kept": Fault("teacher_prompt", "teacher_prompt", keep_role),
    "filled text interpreted again": Fault("teacher_prompt", "teacher_prompt", filled_twice),
    "feedback beside a solution": Fault(
        "teacher_prompt",
        "teacher_prompt",
        setting(environment_feedback_only_without_solution=False),
    ),
    "M30 left truncation": Fault(
        "teacher_tokens", "teacher_tokens", setting(reprompt_truncation="left")
    ),
    "limit off by one": Fault(
        "teacher_tokens",
        "cut_prompts",
        lambda original, prompts, limit, side: original(prompts, limit - 1, side),
        teacher_tokens,
    ),
    "thinking switch not passed on": Fault(
        "teacher_tokens", "teacher_tokens", setting(chat_template_kwargs={})
    ),
    "generation header missing": Fault(
        "teacher_tokens", "prompt_ids", without_header, teacher_tokens
    ),
    "right padding": Fault("teacher_tokens", "teacher_tokens", with_width(right_padded)),
    "attention instead of response mask": Fault("teacher_tokens", "teacher_tokens", within_mask),
    "positions not offset by padding": Fault(
        "teacher_tokens", "teacher_tokens", result(plain_positions)
    ),
    "positions restart at the response": Fault(
        "teacher_tokens", "teacher_tokens", with_width(restarting_positions)
    ),
    "positions below zero in padding": Fault("teacher_tokens", "teacher_tokens", result(no_clamp)),
    "mask without feedback": Fault("distillation_mask", "distillation_mask", only_demonstrations),
    "mask all ones": Fault("distillation_mask", "distillation_mask", result(torch.ones_like)),
    "mask in float64": Fault("distillation_mask", "distillation_mask", result(torch.Tensor.double)),
    "metric counts successful rows": Fault(
        "metrics",
        "reprompt_metrics",
        masked_metric("success_sample_fraction", lambda _, ok, *rest: sum(ok) / len(ok)),
    ),
    "metric averaged in float64": Fault(
        "metrics",
        "reprompt_metrics",
        masked_metric("reprompt_sample_fraction", lambda *xs: xs[-1].double().mean().item()),
    ),
}


ENOUGH = 10
"""Cases that a fault changes; those behind them are left out."""


@pytest.fixture(scope="module")
def expected(tokenizer: Any) -> dict[str, Record | None]:
    return {name: run_reference(case, tokenizer) for name, case in CASES.items()}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_planted_fault_is_found_where_it_is(
    fault: Fault,
    tokenizer: Any,
    expected: dict[str, Record | None],
    monkeypatch: pytest.MonkeyPatch,
):
    original = getattr(fault.module, fault.function)
    monkeypatch.setattr(
        fault.module, fault.function, lambda *args, **kw: fault.change(original, *args, **kw)
    )
    found = {}
    for name, case in CASES.items():
        record = run_sdpo(case, tokenizer)
        stage = first_departure(record, expected[name])
        if stage is not None and record is not None:
            found[name] = stage
            recorded = departures(record, case, tokenizer)
            assert recorded, name
        if len(found) == ENOUGH:
            break
    assert set(found.values()) == {fault.stage}
