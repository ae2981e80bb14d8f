"""Stages of the teacher prompt, on the recorded cases: exact comparison.

A whole implementation runs from its own values; functions of a module or object are called on the
reference's values, by name:

| stage | arguments | returns, per row |
|---|---|---|
| `feedback` | `feedback_raw`, `n_rows`, `include_environment_feedback` | text or None |
| `demonstration` | `response_texts`, `token_level_rewards`, `uids`, `success_reward_threshold`, `dont_reprompt_on_self_success`, `remove_thinking_from_demonstration` | (row of the peer, its text) or None |
| `teacher_prompt` | `raw_prompt`, `demonstrations`, `feedbacks`, `environment_feedback_only_without_solution`, the three templates | messages |
| `teacher_tokens` | `messages`, `responses`, `response_mask`, `tokenizer`, `max_reprompt_len`, `reprompt_truncation`, `chat_template_kwargs` | three `(B, L+R)` tensors: ids, attention mask, position ids |
| `distillation_mask` | `demonstrations`, `feedbacks`, `environment_feedback_only_without_solution` | `(B,)` tensor |
"""  # noqa: E501

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from sdpo.fixtures import GoldenCase, GoldenFamily
from sdpo.fixtures.models import load_tokenizer
from sdpo.parity.cases.callables import call_by_name
from sdpo.parity.cases.checked_call import CandidateError, guarded
from sdpo.parity.compare.comparison import Comparison, compare_exact
from sdpo.parity.compare.statuses import Status
from sdpo.parity.compare.verdict import CaseResult
from sdpo.prompt.demonstrations import RepromptWarning
from sdpo.reference import teacher_prompt as reference

TOKEN_NAMES = ("input_ids", "attention_mask", "position_ids")

Record = dict[str, Any]
Progress = Callable[[str, int, int], None]


def run_reprompt_family(
    candidate: Any, stages: tuple[str, ...], family: GoldenFamily, progress: Progress
) -> list[CaseResult]:
    """All recorded teacher prompts.

    Args:
        candidate: one with `prompt_record`, or with an `owner` of functions named as the stages.
        stages: those of its stages that are compared.
        family: the recorded cases.
        progress: told the family, the number of cases done and their total.

    Raises:
        CandidateError: transformers, which loads the tokenizer, is not installed.
    """
    try:
        tokenizer = load_tokenizer(family)
    except ImportError as error:
        raise CandidateError(
            "teacher_tokens",
            "the teacher-prompt stages need transformers: pip install 'sdpo[train]'",
        ) from error
    results = []
    for number, golden in enumerate(family):
        progress(family.name, number, len(family))
        results.append(_run_case(candidate, stages, golden, tokenizer))
    progress(family.name, len(family), len(family))
    return results


def _run_case(
    candidate: Any, stages: tuple[str, ...], golden: GoldenCase, tokenizer: Any
) -> CaseResult:
    """One recorded teacher prompt."""
    result = CaseResult(golden.id, "reprompt", tuple(golden.tags))
    tensors = golden.tensors()
    if golden.entry["outputs"]["returns_none"]:
        return _without_prompt(candidate, golden, tensors, tokenizer, result)
    expected = _reference_record(golden, tensors, tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RepromptWarning)
        try:
            values = _whole_record(candidate, golden, tensors, tokenizer)
            if values is None:
                raise CandidateError("teacher_prompt", "no teacher prompt was built")
        except CandidateError as error:
            result.comparisons.append(
                Comparison(error.stage, Status.ERROR, golden.id, note=str(error))
            )
            return result
        for stage in stages:
            try:
                if stage not in values:
                    offered = offers(stage, golden, tensors, expected, tokenizer)
                    function = getattr(candidate.owner, stage)
                    values[stage] = call_by_name(stage, function, offered)
                value = guarded(stage, _normal, stage, values[stage])
                found = guarded(stage, _compare_record, stage, golden.id, value, expected[stage])
            except CandidateError as error:
                found = Comparison(stage, Status.ERROR, golden.id, note=str(error))
            result.comparisons.append(found)
    return result


def _without_prompt(
    candidate: Any,
    golden: GoldenCase,
    tensors: Mapping[str, Tensor],
    tokenizer: Any,
    result: CaseResult,
) -> CaseResult:
    """The result of a case for which the reference builds no teacher prompt: nobody else may."""
    try:
        record = _whole_record(candidate, golden, tensors, tokenizer)
    except CandidateError as error:
        failed = Comparison(error.stage, Status.ERROR, golden.id, note=str(error))
        result.comparisons.append(failed)
        return result
    if record == {}:
        result.note = "functions of stages are not told the loss mode, for which none is built"
        return result
    built = "none" if record is None else "built"
    loss_mode = f"teacher prompt in loss mode {golden.config['loss_mode']}"
    found = compare_exact("teacher_prompt", golden.id, loss_mode, built, "none")
    result.comparisons.append(found)
    return result


def _whole_record(
    candidate: Any, golden: GoldenCase, tensors: Mapping[str, Tensor], tokenizer: Any
) -> Record | None:
    """The stage values of a candidate that builds the whole prompt; empty for stage functions.

    None if it builds none.

    Raises:
        CandidateError: building it raised.
    """
    if not hasattr(candidate, "prompt_record"):
        return {}
    return guarded("teacher_prompt", candidate.prompt_record, golden, tensors, tokenizer)


def _reference_record(golden: GoldenCase, tensors: Mapping[str, Tensor], tokenizer: Any) -> Record:
    """Stage values of the reference: recorded where they were, else from the transcription."""
    trace = transcription_record(golden, tensors, tokenizer)
    assert trace is not None, f"the transcription builds no teacher prompt for {golden.id}"
    return {
        "response_texts": golden.entry["outputs"]["response_texts"],
        "feedback": trace["feedback"],
        "demonstration": trace["demonstration"],
        "teacher_prompt": golden.entry["outputs"]["teacher_messages"],
        "teacher_tokens": {name: tensors[f"out.teacher_{name}"] for name in TOKEN_NAMES},
        "distillation_mask": tensors["out.self_distillation_mask"],
    }


def transcription_record(
    golden: GoldenCase, tensors: Mapping[str, Tensor], tokenizer: Any
) -> Record | None:
    """Stage values of the transcription; None where it builds no teacher prompt."""
    inputs, settings = golden.entry["inputs"], golden.config["self_distillation"]
    reference.set_tokenizer_sides(tokenizer, settings)
    batch = reference.build_teacher_batch(
        tensors["in.responses"],
        tensors["in.response_mask"],
        tensors["in.token_level_rewards"],
        inputs["raw_prompt"],
        inputs["uids"],
        tokenizer=tokenizer,
        loss_mode=golden.config["loss_mode"],
        self_distillation=settings,
        reward_extra_infos=inputs["reward_extra_infos"],
        apply_chat_template_kwargs=golden.config["apply_chat_template_kwargs"],
    )
    return None if batch is None else dict(batch.trace)


def offers(
    stage: str,
    golden: GoldenCase,
    tensors: Mapping[str, Tensor],
    expected: Record,
    tokenizer: Any,
) -> dict[str, object]:
    """The arguments of a stage function, from the reference's values."""
    inputs, settings = golden.entry["inputs"], golden.config["self_distillation"]
    chosen = {"demonstrations": expected["demonstration"], "feedbacks": expected["feedback"]}
    own: dict[str, dict[str, object]] = {
        "feedback": {
            "feedback_raw": (inputs["reward_extra_infos"] or {}).get("feedback", []),
            "n_rows": len(expected["response_texts"]),
        },
        "demonstration": {
            "response_texts": expected["response_texts"],
            "token_level_rewards": tensors["in.token_level_rewards"].clone(),
            "uids": inputs["uids"],
        },
        "teacher_prompt": {"raw_prompt": inputs["raw_prompt"], **chosen},
        "teacher_tokens": {
            "messages": expected["teacher_prompt"],
            "responses": tensors["in.responses"].clone(),
            "response_mask": tensors["in.response_mask"].clone(),
            "tokenizer": tokenizer,
            "chat_template_kwargs": golden.config["apply_chat_template_kwargs"],
        },
        "distillation_mask": chosen,
    }
    return own[stage] | settings


def _normal(stage: str, value: Any) -> Any:
    """A stage's value in one form: plain tuples, lists and named tensors."""
    if stage == "demonstration":
        return [None if chosen is None else tuple(chosen) for chosen in value]
    if stage == "teacher_prompt":
        return [[dict(message) for message in messages] for messages in value]
    if stage == "teacher_tokens":
        if isinstance(value, Mapping):
            return {name: value.get(name, value.get(f"teacher_{name}")) for name in TOKEN_NAMES}
        return dict(zip(TOKEN_NAMES, value, strict=True))
    return value


def _compare_record(stage: str, case: str, actual: Any, expected: Any) -> Comparison:
    """Compare one stage's value exactly, and name the first part that differs."""
    if stage == "teacher_tokens":
        for name in TOKEN_NAMES:
            if not equal(actual[name], expected[name]):
                return compare_exact(
                    stage, case, name, listed(actual[name]), listed(expected[name])
                )
        return compare_exact(stage, case, stage, True, True)
    if stage == "distillation_mask":
        same = equal(actual, expected)
        sides = (listed(actual), listed(expected)) if not same else (True, True)
        return compare_exact(stage, case, stage, *sides)
    for row, (ours, theirs) in enumerate(zip(actual, expected, strict=False)):
        if ours != theirs:
            return compare_exact(stage, case, f"row {row}", ours, theirs)
    return compare_exact(stage, case, "number of rows", len(actual), len(expected))


def equal(actual: Any, expected: Tensor) -> bool:
    """Whether a value is a tensor of the same dtype and the same entries."""
    return (
        isinstance(actual, Tensor)
        and actual.dtype == expected.dtype
        and torch.equal(actual, expected)
    )


def listed(value: Any) -> str:
    """A tensor as text, dtype included."""
    return f"{value.dtype} {value.tolist()}" if isinstance(value, Tensor) else repr(value)
