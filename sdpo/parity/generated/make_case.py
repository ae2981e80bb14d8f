"""From a row of factors and a seed to a loss case; its name says both, to make it again."""

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Tensor

from sdpo.fixtures.loader import DTYPES
from sdpo.parity.cases.call_conditions import CallConditions
from sdpo.parity.cases.loss_case import LossCase
from sdpo.parity.generated.covering_array import covering_rows
from sdpo.parity.generated.factors import Row, table
from sdpo.parity.generated.make_logits import make_logits
from sdpo.settings.config import SDPOConfig

PREFIX = "generated"
GENERATED = "generated"
"""The tag of generated cases."""

USUAL_SUPPORT = 100

Fixed = Mapping[str, float]
_NONE: Fixed = {}


def case_id(row: Row, seed: int, fixed: Fixed = _NONE) -> str:
    """The name of a case: `generated-SEED-NUMBER`, the places of its values as one number.

    Settings that are `fixed` at values which no factor has follow: `@alpha=0.9`.
    """
    number = 0
    for factor, values in table().factors.items():
        number = number * len(values) + values.index(row[factor])
    settings = "".join(f"@{name}={value}" for name, value in fixed.items())
    return f"{PREFIX}-{seed}-{number:x}{settings}"


def is_generated(name: str) -> bool:
    """Whether a name is that of a generated case."""
    return name.startswith(f"{PREFIX}-")


def row_and_seed(name: str) -> tuple[Row, int]:
    """The row and the seed that a case was made from.

    Raises:
        ValueError: no name of a generated case.
    """
    prefix, seed, code = name.partition("@")[0].split("-")
    if prefix != PREFIX:
        raise ValueError(f"case {name!r}: no generated case")
    number, row = int(code, 16), {}
    for factor, values in reversed(table().factors.items()):
        number, place = divmod(number, len(values))
        row[factor] = values[place]
    return {factor: row[factor] for factor in table().factors}, int(seed)


def make_again(name: str) -> LossCase:
    """The case of a name.

    Raises:
        ValueError: no name of a generated case.
    """
    settings = [setting.partition("=") for setting in name.split("@")[1:]]
    fixed = {setting: float(value) for setting, _, value in settings}
    return make_case(*row_and_seed(name), fixed)


def make_case(row: Row, seed: int, fixed: Fixed = _NONE) -> LossCase:
    """Draw a case; the same row and seed give the same.

    Args:
        row: one value of each factor.
        seed: of the values.
        fixed: `alpha` or `distillation_topk` at a value that no factor has; they have no effect
            where the mode does without.
    """
    name = case_id(row, seed, fixed)
    generator = torch.Generator().manual_seed(hash_of(name))
    rows, tokens, vocabulary = (int(row[factor]) for factor in ("rows", "tokens", "vocabulary"))
    student, teacher = make_logits(str(row["logits"]), (rows, tokens, vocabulary), generator)
    responses = _responses(row, (rows, tokens), vocabulary, generator)
    dtypes = [DTYPES[name] for name in str(row["dtypes"]).split()]
    student, teacher = student.to(dtypes[0]), teacher.to(dtypes[-1])
    config = _config(row, vocabulary, fixed)
    return LossCase(
        id=name,
        config=config,
        student_logits=student,
        teacher_logits=teacher,
        responses=responses,
        response_mask=_response_mask(row, rows, tokens, generator),
        old_log_probs=_old_log_probs(row, student / config.temperature, responses, generator),
        self_distillation_mask=_rows_with_teacher(str(row["signal"]), rows),
        rollout_is_weights=_rollout_weights(str(row["weights"]), (rows, tokens), generator),
        tags=(GENERATED, *varied(row)),
        call=call_of(row),
    )


@lru_cache(maxsize=1)
def covering_cases(seed: int) -> tuple[LossCase, ...]:
    """The cases of the covering array; the same objects for the same seed as before."""
    return tuple(make_case(row, seed) for row in covering_rows())


def hash_of(name: str) -> int:
    """A seed from a name, the same in every process."""
    return int.from_bytes(name.encode(), "little") % (2**61 - 1)


def varied(row: Row) -> list[str]:
    """The factors of a row that are not at their plainest value."""
    return [f"{f} {row[f]}" for f, values in table().factors.items() if row[f] != values[0]]


def call_of(row: Row) -> CallConditions:
    """How the loss is called."""
    return CallConditions(
        layout=row["layout"],  # type: ignore[arg-type] - a text of the table
        by_position=row["arguments"] == "by position",
        incoming=float(row["incoming"]),
        autocast=row["autocast"] != "off",
        teacher_grad=row["teacher"] == "requires grad",
        order=row["order"],  # type: ignore[arg-type] - a text of the table
    )


def _config(row: Row, vocabulary: int, fixed: Fixed) -> SDPOConfig:
    """The settings of the loss."""
    mode, clip = row["mode"], row["clip"]
    alpha = row["alpha"] if mode == "sampled" else fixed.get("alpha", row["alpha"])
    topk = fixed.get("distillation_topk") if str(mode).startswith("topk") else None
    sizes = {
        "none": None,
        "1": 1,
        "some": max(1, min(vocabulary // 2, USUAL_SUPPORT)),
        "V - 1": vocabulary - 1,
        "V": vocabulary,
        "V + 3": vocabulary + 3,
    }
    return SDPOConfig(
        full_logit_distillation=mode != "sampled",
        distillation_add_tail=mode == "topk_tail",
        distillation_topk=int(topk) if topk else sizes[str(row["support"])],
        alpha=float(alpha),
        temperature=float(row["temperature"]),
        is_clip=None if clip == "none" else float(clip),
        loss_agg_mode=str(row["aggregation"]),
    )


def _responses(
    row: Row, shape: tuple[int, int], vocabulary: int, generator: torch.Generator
) -> Tensor:
    """The sampled tokens `(B, T)`."""
    if row["responses"] == "any":
        return torch.randint(vocabulary, shape, generator=generator)
    return torch.full(shape, 0 if row["responses"] == "first entry" else vocabulary - 1)


def _response_mask(row: Row, rows: int, tokens: int, generator: torch.Generator) -> Tensor:
    """Which tokens count, `(B, T)`, in the mask's dtype; at least one does."""
    at, lengths = torch.arange(tokens), torch.full((rows, 1), tokens)
    drawn = torch.randint(1, tokens + 1, (rows, 1), generator=generator)
    match row["lengths"]:
        case "ragged" | "left padded":
            lengths = drawn
        case "one token":
            lengths = torch.ones_like(drawn)
        case "empty row":
            lengths = torch.where(torch.arange(rows)[:, None] == 1, 0, drawn)
    mask = at < lengths
    if row["lengths"] == "left padded":
        mask = mask.flip(-1)
    if row["lengths"] == "gaps":
        mask = (torch.rand(rows, tokens, generator=generator) < 0.6) | (at == 0)
    dtypes = {"int64": torch.int64, "bool": torch.bool, "uint8": torch.uint8}
    return mask.to(dtypes.get(str(row["mask"]), torch.float32))


def _rows_with_teacher(signal: str, rows: int) -> Tensor | None:
    """The distillation mask `(B,)`; at least one row has a teacher."""
    at = torch.arange(rows)
    match signal:
        case "none":
            return None
        case "all rows":
            return torch.ones(rows)
        case "some rows":
            return (at % 3 != 1).float()
    return (at == 0).float()


def _old_log_probs(
    row: Row, scaled: Tensor, responses: Tensor, generator: torch.Generator
) -> Tensor | None:
    """Log-probs of the policy that sampled, `(B, T)` float32; on both sides of the ratio's cap."""
    spread = {"near 1": 0.3, "far from 1": 3.0, "1": 0.0}.get(str(row["ratio"]))
    if spread is None:
        return None
    own = scaled.float().log_softmax(-1).gather(-1, responses[..., None])[..., 0]
    return own.nan_to_num(neginf=-50.0) + spread * torch.randn(own.shape, generator=generator)


def _rollout_weights(
    weights: str, shape: tuple[int, int], generator: torch.Generator
) -> Tensor | None:
    """Weights of the rollout correction, `(B, T)` float32."""
    drawn = torch.rand(shape, generator=generator)
    match weights:
        case "none":
            return None
        case "above 2":
            return 0.5 + 4 * drawn
    return torch.where(drawn < 0.3, 0.0, 0.5 + drawn)
