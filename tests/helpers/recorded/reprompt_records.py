"""Runs a recorded teacher-prompt case through either implementation, and compares records.

A record maps each stage to its value; `STAGES` is their order.
"""

from typing import Any

import torch
from transformers import AutoTokenizer

from sdpo.fixtures import packaged_family
from sdpo.fixtures.loader import GoldenCase
from sdpo.prompt.teacher_batch import Attempts, teacher_batch
from sdpo.reference import teacher_prompt as reference
from sdpo.settings.stage_settings import PromptSettings

FAMILY = packaged_family("reprompt")
CASES = {case.id: case for case in FAMILY}
TENSORS = {case.id: case.tensors() for case in FAMILY}
STAGES = (
    "response_texts",
    "feedback",
    "demonstration",
    "teacher_prompt",
    "teacher_tokens",
    "distillation_mask",
    "metrics",
)

Record = dict[str, Any]


def new_tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(FAMILY.folder / "tokenizer")


def run_reference(case: GoldenCase, tokenizer: Any, **overrides: Any) -> Record | None:
    inputs, tensors = case.entry["inputs"], TENSORS[case.id]
    settings = {**case.config["self_distillation"], **overrides.pop("settings", {})}
    reference.set_tokenizer_sides(tokenizer, settings)
    arguments = {
        "reward_extra_infos": inputs["reward_extra_infos"],
        "apply_chat_template_kwargs": case.config["apply_chat_template_kwargs"],
        **overrides,
    }
    batch = reference.build_teacher_batch(
        tensors["in.responses"],
        tensors["in.response_mask"],
        tensors["in.token_level_rewards"],
        inputs["raw_prompt"],
        inputs["uids"],
        tokenizer=tokenizer,
        loss_mode=case.config["loss_mode"],
        self_distillation=settings,
        **arguments,
    )
    return None if batch is None else {**batch.trace, "metrics": batch.metrics}


def run_sdpo(case: GoldenCase, tokenizer: Any) -> Record | None:
    if case.config["loss_mode"] != "sdpo":
        return None  # ours knows no other loss
    inputs, tensors = case.entry["inputs"], TENSORS[case.id]
    attempts = Attempts(
        inputs["raw_prompt"],
        tensors["in.responses"],
        tensors["in.response_mask"],
        tensors["in.token_level_rewards"],
        inputs["uids"],
        (inputs["reward_extra_infos"] or {}).get("feedback", ()),
    )
    batch = teacher_batch(
        attempts,
        tokenizer,
        PromptSettings(**case.config["self_distillation"]),
        chat_template_kwargs=case.config["apply_chat_template_kwargs"],
    )
    teacher_tokens = {f"teacher_{name}": x for name, x in batch.tokens._asdict().items()}
    return {**batch.trace, "teacher_tokens": teacher_tokens, "metrics": batch.metrics}


IMPLEMENTATIONS = {"reference": run_reference, "sdpo": run_sdpo}


def same(actual: Any, expected: Any) -> bool:
    if isinstance(expected, dict):
        return actual.keys() == expected.keys() and all(
            same(actual[key], expected[key]) for key in expected
        )
    if isinstance(expected, torch.Tensor):
        return actual.dtype == expected.dtype and torch.equal(actual, expected)
    return actual == expected


def prompt_texts(record: Record, width: int, tokenizer: Any) -> list[str]:
    ids = record["teacher_tokens"]["teacher_input_ids"][:, :width]
    mask = record["teacher_tokens"]["teacher_attention_mask"][:, :width].bool()
    return [tokenizer.decode(row[kept]) for row, kept in zip(ids, mask, strict=True)]


def departures(record: Record, case: GoldenCase, tokenizer: Any) -> list[str]:
    """Names of the recorded values that the record does not reproduce exactly."""
    outputs, tensors = case.entry["outputs"], TENSORS[case.id]
    width = outputs["teacher_prompt_width"]
    obtained = {
        "response_texts": record["response_texts"],
        "teacher_messages": record["teacher_prompt"],
        "teacher_prompt_text": prompt_texts(record, width, tokenizer),
        "metrics": record["metrics"],
        "out.self_distillation_mask": record["distillation_mask"],
        **{f"out.{name}": value for name, value in record["teacher_tokens"].items()},
    }
    recorded = {name: outputs.get(name, tensors.get(name)) for name in obtained}
    return [name for name in obtained if not same(obtained[name], recorded[name])]


def first_departure(actual: Record | None, expected: Record | None) -> str | None:
    """The first stage at which two records differ, or None."""
    if actual is None or expected is None:
        return None if actual is expected else STAGES[0]
    return next((stage for stage in STAGES if not same(actual[stage], expected[stage])), None)
