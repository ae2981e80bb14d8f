"""Records a teacher prompt: texts, messages, tokens, mask and metrics."""

from typing import Any

from torch import Tensor

from sdpo.parity.live_fork.teacher_prompts import Attempts, LivePrompt, live_prompt
from sdpo.parity.record.recipes import Recipe, Recording, recording

UNTRUNCATED = ("max_length", "padding", "truncation", "return_tensors", "return_dict")


def record_prompt(recipe: Recipe, tokenizer: Any) -> Recording:
    """Run a batch of attempts through the fork's trainer.

    Args:
        recipe: with the attempts as `inputs`.
        tokenizer: the recorded one; its sides are set by the fork.
    """
    config, inputs = recipe.config, recipe.given["inputs"]
    attempts = Attempts(
        inputs["raw_prompt"],
        inputs["uids"],
        recipe.inputs["in.responses"],
        recipe.inputs["in.response_mask"],
        recipe.inputs["in.token_level_rewards"],
        inputs["reward_extra_infos"],
    )
    prompt = live_prompt(
        attempts,
        config["self_distillation"],
        tokenizer,
        loss_mode=config["loss_mode"],
        chat_template_kwargs=config["apply_chat_template_kwargs"],
    )
    if prompt is None:
        return recording(recipe, {}, {"outputs": {"returns_none": True}})
    tensors = {f"out.{name}": value for name, value in prompt.tensors.items()}
    width = tensors["out.teacher_input_ids"].shape[1] - attempts.responses.shape[1]
    facts = {
        "returns_none": False,
        "teacher_prompt_width": width,
        "response_texts": prompt.response_texts,
        "teacher_messages": prompt.messages,
        "chat_template_call": prompt.template_call,
        "teacher_prompt_text": prompt_texts(prompt, width, tokenizer),
        "untruncated_prompt_tokens": untruncated_lengths(prompt, tokenizer),
        "metrics": prompt.metrics,
    }
    return recording(recipe, tensors, {"outputs": facts})


def prompt_texts(prompt: LivePrompt, width: int, tokenizer: Any) -> list[str]:
    """Per row the prompt part decoded, without padding and with special tokens."""
    ids: Tensor = prompt.tensors["teacher_input_ids"][:, :width]
    kept = prompt.tensors["teacher_attention_mask"][:, :width] != 0
    return [tokenizer.decode(row[mask]) for row, mask in zip(ids, kept, strict=True)]


def untruncated_lengths(prompt: LivePrompt, tokenizer: Any) -> list[int]:
    """Per row the number of tokens that the rendered prompt has if nothing is cut."""
    call = {name: v for name, v in prompt.template_call.items() if name not in UNTRUNCATED}
    rows = [tokenizer.apply_chat_template(m, **call, return_dict=True) for m in prompt.messages]
    return [len(row["input_ids"]) for row in rows]
