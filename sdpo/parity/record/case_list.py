"""Reads a list of cases to record: TOML with strict keys.

Shapes, dtypes, settings and seeds are given; tensors are made from them (`make_inputs`). What is
not given has the default that stands here, or the fork's own one of `sdpo.yaml`.
"""

import re
import tomllib
from pathlib import Path

import msgspec

from sdpo.settings.rules import nearest


class CaseListError(Exception):
    """A list of cases that cannot be recorded; one line says why."""


class LossEntry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A loss case.

    Attributes:
        rows, tokens, vocabulary: shape of the logits.
        seed: of logits, responses and log-probs.
        lengths: response tokens of each row; by default they differ from row to row.
        counted_rows: which rows have a teacher prompt, 1 or 0 each; none is no distillation mask.
        mask_dtype: of the response mask.
        dtype, teacher_dtype: of the student's and the teacher's logits.
        logit_scale, teacher_distance: sizes of the student's logits, and of what the teacher's add.
        old_distance: how far old log-probs are from the student's; absent without old log-probs.
        rollout_distance: how far the sampler's log-probs are from the old ones.
        rollout_weights: given to the tokens one after the other, in place of the fork's own.
    """

    id: str
    description: str
    tags: list[str]
    rows: int = 3
    tokens: int = 6
    vocabulary: int = 64
    seed: int
    lengths: list[int] | None = None
    counted_rows: list[int] | None = None
    mask_dtype: str = "int64"
    dtype: str = "float32"
    teacher_dtype: str | None = None
    logit_scale: float = 2.0
    teacher_distance: float = 0.7
    old_distance: float | None = None
    rollout_distance: float = 0.5
    rollout_weights: list[float] | None = None
    full_logit_distillation: bool = True
    alpha: float = 0.5
    distillation_topk: int | None = None
    distillation_add_tail: bool = True
    is_clip: float | None = None
    loss_agg_mode: str = "token-mean"
    temperature: float = 1.0
    rollout_is_threshold: float | None = None


class PromptEntry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A teacher prompt.

    Attributes:
        prompts: per row the text of the user's message.
        uids: per row its group.
        responses: per row the text of the attempt.
        rewards: per row, at its last token.
        feedback: per row, empty for none; absent where the reward function returns none.
        width: of the responses, padded.
        settings: of the prompt, in place of those of `sdpo.yaml`.
        chat_template_kwargs: of the data's settings.
    """

    id: str
    description: str
    tags: list[str]
    prompts: list[str]
    uids: list[str]
    responses: list[str]
    rewards: list[float]
    feedback: list[str] | None = None
    width: int = 16
    settings: dict[str, str | bool | int | float] = {}
    chat_template_kwargs: dict[str, bool] = msgspec.field(
        default_factory=lambda: {"enable_thinking": False}
    )


class UpdateEntry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A case of one or several updates.

    Attributes:
        model: `A` (separate output weights) or `B` (tied embeddings).
        seed: of tokens and old log-probs.
        updates: how many.
        lengths: response tokens of each row.
        prompt, teacher_prompt: tokens of the longest prompts.
        counted_rows: which rows have a teacher prompt, 1 or 0 each; by default all.
        actor, self_distillation, optimizer: in place of the defaults in `make_inputs`; "none"
            stands for the null that TOML lacks.
        teacher: `separate`, `trust_region` or `none`.
        teacher_init: `perturbed` or `actor`.
    """

    id: str
    description: str
    tags: list[str]
    model: str = "A"
    seed: int
    updates: int = 1
    lengths: list[int]
    prompt: int = 5
    teacher_prompt: int = 11
    counted_rows: list[int] | None = None
    actor: dict[str, str | bool | int | float] = {}
    self_distillation: dict[str, str | bool | int | float] = {}
    optimizer: dict[str, str | float] = msgspec.field(
        default_factory=lambda: {"name": "SGD", "lr": 0.5}
    )
    teacher: str = "separate"
    teacher_init: str = "perturbed"
    temperature: float = 1.0
    save_grads: bool = False
    save_all_log_probs: bool = False


class CaseList(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """All cases of a list, by family."""

    loss: list[LossEntry] = []
    reprompt: list[PromptEntry] = []
    update: list[UpdateEntry] = []


KINDS = {"loss": LossEntry, "reprompt": PromptEntry, "update": UpdateEntry}


def read_case_list(path: Path) -> CaseList:
    """Read a list of cases.

    Raises:
        CaseListError: it cannot be read, is not TOML, has an unknown or a wrong key, no case, or
            an id twice.
    """
    try:
        cases = msgspec.convert(tomllib.loads(path.read_text("utf-8")), CaseList)
    except OSError as error:
        raise CaseListError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CaseListError(f"{path} is not TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise CaseListError(f"{path}: {_explained(str(error))}") from error
    ids = [entry.id for family in KINDS for entry in getattr(cases, family)]
    if not ids:
        raise CaseListError(f"{path} lists no case: give tables {', '.join(KINDS)}")
    if repeated := sorted({name for name in ids if ids.count(name) > 1}):
        raise CaseListError(f"{path} repeats the ids {', '.join(repeated)}")
    return cases


def _explained(message: str) -> str:
    """What msgspec says of a wrong document, with the nearest known key for an unknown one."""
    unknown = re.search(r"unknown field `([^`]*)`(?: - at `\$\.(\w+)\[(?:\.\.\.|\d+)\]`)?", message)
    if unknown is None:
        return message
    key, family = unknown.groups()
    known = list(KINDS[family].__struct_fields__) if family else list(KINDS)
    where = f" of a {family} case" if family else ""
    hint = nearest(key, known) or f"; there are {', '.join(known)}"
    return f"{key!r} is no key{where}{hint}"
