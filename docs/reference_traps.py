"""Known traps of the reference, each measured by the transcription: the table in its README.

python docs/reference_traps.py          prints the table
python docs/reference_traps.py --write  writes it into reference/README.md
"""

import sys
import warnings
from dataclasses import replace
from typing import Any

from generate import ROOT, replaced
from update_traps import UPDATE_TRAPS, Trap, raised

from sdpo.fixtures import packaged_family
from sdpo.fixtures.models import load_tokenizer
from sdpo.parity.cases.loss_case import loss_cases, reference_trace
from sdpo.parity.drift.default_drift import verl_layers
from sdpo.reference import teacher_prompt
from sdpo.runtime.markdown_table import markdown_table

README = ROOT / "reference" / "README.md"
LAYERS = ("verl dataclass", "verl actor.yaml", "verl sdpo.yaml")


def prompts(case_id: str, **changes: Any) -> teacher_prompt.TeacherBatch:
    """A recorded teacher prompt, with some inputs or settings changed; `order` permutes rows."""
    golden, family = packaged_family("reprompt").case(case_id), packaged_family("reprompt")
    inputs, tensors = golden.entry["inputs"], golden.tensors()
    order = changes.pop("order", range(len(inputs["uids"])))
    conversations = changes.pop("raw_prompt", inputs["raw_prompt"])
    settings = {**golden.config["self_distillation"], **changes}
    tokenizer = load_tokenizer(family)
    teacher_prompt.set_tokenizer_sides(tokenizer, settings)
    built = teacher_prompt.build_teacher_batch(
        *(tensors[f"in.{n}"][list(order)] for n in ("responses", "response_mask")),
        tensors["in.token_level_rewards"][list(order)],
        [conversations[row] for row in order],
        [inputs["uids"][row] for row in order],
        inputs["reward_extra_infos"],
        tokenizer,
        loss_mode="sdpo",
        self_distillation=settings,
    )
    assert built is not None
    return built


def right_truncation() -> Trap:
    """The end of the rendered prompt is cut, the assistant's header included."""
    golden = packaged_family("reprompt").case("P-R030")
    whole = max(golden.entry["outputs"]["untruncated_prompt_tokens"])
    row = golden.entry["outputs"]["untruncated_prompt_tokens"].index(whole)
    text = golden.entry["outputs"]["teacher_prompt_text"][row]
    limit = golden.config["self_distillation"]["max_reprompt_len"]
    header = "assistant" in text.rsplit("<|im_start|>", 1)[-1]
    assert not header
    return Trap(
        "`reprompt_truncation=right` cuts the end of the rendered prompt",
        f"{whole} tokens become {limit}; the prompt ends …`{text[-14:]}`, inside the user's text, "
        "without end of turn and without the assistant's header",
        "P-R030",
    )


def error_truncation() -> Trap:
    """The recommended `error` raises always."""
    golden = packaged_family("reprompt").case("P-R001")
    longest = max(golden.entry["outputs"]["untruncated_prompt_tokens"])
    limit = golden.config["self_distillation"]["max_reprompt_len"]
    kind = raised(lambda: prompts("P-R001", reprompt_truncation="error"))
    return Trap(
        "`reprompt_truncation=error` always raises, and is the fallback where the key is missing",
        f"{kind} with prompts of {longest} tokens under a limit of {limit}",
        "P-R001",
    )


def content_parts() -> Trap:
    """Content given as a list of parts is written as Python writes a list."""
    golden, built = packaged_family("reprompt").case("P-R003"), prompts("P-R003")
    *before, last = golden.entry["inputs"]["raw_prompt"][0]
    in_parts = [*before, {**last, "content": [{"type": "text", "text": last["content"]}]}]
    demonstration = built.trace["demonstration"][0]
    settings = golden.config["self_distillation"]
    shown = built.trace["teacher_prompt"][0][-1]["content"]
    given = teacher_prompt.build_messages(in_parts, demonstration, None, settings)[-1]["content"]
    return Trap(
        "content given as a list of parts is formatted as Python writes a list",
        f"the question reads `{given[:16]}…`: {len(given)} characters instead of {len(shown)}",
        "P-R003",
    )


def row_order() -> Trap:
    """The first success of a group depends on the order of rows, which `balance_batch` changes."""
    size = len(packaged_family("reprompt").case("P-R006").entry["inputs"]["uids"])
    texts = [
        [None if d is None else d[1] for d in prompts("P-R006", order=order).trace["demonstration"]]
        for order in (range(size), range(size)[::-1])
    ]
    other = sum(one != two for one, two in zip(texts[0], texts[1][::-1], strict=True))
    return Trap(
        "rows are reordered by length (`balance_batch`) before the first success is looked for",
        f"with the rows reversed {other} of {size} are shown another demonstration",
        "P-R006",
    )


def layers_of_defaults() -> Trap:
    """The dataclass, `actor.yaml` and the composed `sdpo.yaml`."""
    layers = verl_layers()
    common = set.intersection(*(set(layers[name]) for name in LAYERS))
    apart = [n for n in common if len({repr(layers[layer][n]) for layer in LAYERS}) > 1]
    ends = {str(layers[name]["alpha"]) for name in LAYERS}
    return Trap(
        "three layers of defaults: the dataclass, `actor.yaml`, `sdpo.yaml` as composed",
        f"{len(apart)} of {len(common)} settings differ, alpha among them "
        f"({' and '.join(sorted(ends))}); the rich-feedback script sets `ema_update_rate`, "
        "which no layer has, and cannot start",
        "`sdpo drift`",
    )


def ends_of_alpha() -> Trap:
    """The mixture does not join the two pure divergences."""
    (case,) = [c for c in loss_cases(packaged_family("loss")) if c.id == "P-L001"]
    losses = [
        reference_trace(replace(case, config=replace(case.config, alpha=alpha), recorded={}))[
            "aggregate"
        ].item()
        for alpha in (0.0, 0.001, 0.5)
    ]
    return Trap(
        "alpha is not continuous at its ends",
        f"alpha 0, 0.001 and 0.5: {losses[0]:.3g}, {losses[1]:.3g} and {losses[2]:.3g}",
        "P-L001",
    )


def text_behind_the_end() -> Trap:
    """Demonstrations are decoded without looking at the mask."""
    found = [d for d in prompts("P-R052").trace["demonstration"] if d is not None]
    return Trap(
        "a demonstration is decoded without the mask, so that text behind its end is shown",
        f"`{found[0][1]}`",
        "P-R052",
    )


TRAPS = (
    right_truncation,
    error_truncation,
    content_parts,
    row_order,
    text_behind_the_end,
    *UPDATE_TRAPS,
    layers_of_defaults,
    ends_of_alpha,
)


def table() -> str:
    """All traps as a Markdown table."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = [measure() for measure in TRAPS]
    return markdown_table(("trap", "measured effect", "case"), rows, left=3)


if __name__ == "__main__":
    made = table()
    if "--write" in sys.argv:
        text = README.read_text(encoding="utf-8")
        README.write_text(replaced(text, "traps", made), encoding="utf-8")
    print(made)
