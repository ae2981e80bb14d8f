"""Attribute the forward passes of a micro-batch to student and teacher, and join each side's.

    a module answered ─► side_of ─► Passes.add ─► Passes.together: (B, …), or an error

A pass belongs to the side whose module it ran, or, where both sides are one PEFT model, whose
adapters were active. Gradients decide only where one module without adapters is both. Of a pass the
rows are known by the completions with which its tokens end, so that a side may answer in any order
and in any number of passes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sdpo.parity.cases.checked_call import CandidateError, same_bits
from sdpo.parity.trainers.recording.adapter_base import TrainerHooks
from sdpo.parity.trainers.recording.token_layout import (
    Tokens,
    at_responses,
    at_the_end,
    columns_of,
    joined,
    mask_of,
    tokens_of,
    widened,
)

STUDENT, TEACHER, EITHER, NEITHER = "student", "teacher", "either", "neither"
LOGITS = "logits"

ToBatch = Callable[[Tensor], Tensor]


def side_of(adapter: TrainerHooks, trainer: Any, module: nn.Module) -> str:
    """Tell whose pass one of a module is: `student`, `teacher`, `either` or `neither`.

    `either`: student and teacher are this one module, and no adapters tell them apart.

    Raises:
        CandidateError: its layers answer with different adapters.
    """
    teacher = adapter.teacher(trainer)
    if teacher is not trainer.model:
        sides = {id(teacher): TEACHER, id(trainer.model): STUDENT}
        return sides.get(id(module), NEITHER)
    active = _active_adapters(module)
    if active is None:
        return EITHER
    if active == adapter.teacher_adapters(trainer):
        return TEACHER
    return STUDENT if active else NEITHER


def _active_adapters(module: nn.Module) -> tuple[str, ...] | None:
    """Return the active adapters of a PEFT model, `()` if they are disabled; None for others.

    Raises:
        CandidateError: layers differ.
    """
    if not hasattr(module, "peft_config"):
        return None
    from peft.tuners.tuners_utils import BaseTunerLayer

    states = {
        () if layer.disable_adapters else tuple(layer.active_adapters)
        for layer in module.modules()
        if isinstance(layer, BaseTunerLayer)
    }
    if len(states) != 1:
        raise CandidateError(
            "log_probs",
            f"layers of one model answer with different adapters, {sorted(states)}: whose answer "
            "that is cannot be told",
        )
    return states.pop()


@dataclass(frozen=True)
class Pass:
    """One forward pass, its values copied and laid out with the responses at the end.

    `rows` are those of the micro-batch that it answers; `inputs` `(rows, L)` what it was given,
    `moved_inputs` the same with mask and positions in effect; `logits` `(rows, T, V)`; `tokens`
    what each row attends to.
    """

    side: str
    with_gradient: bool
    rows: list[int]
    inputs: dict[str, Tensor]
    moved_inputs: dict[str, Tensor]
    logits: Tensor
    tokens: list[Tokens]


@dataclass(frozen=True)
class Answer:
    """All passes of a side: `logits` `(B, T, V)`, `inputs` `(B, L)`, and what each row attends to.

    Rows that are not answered are zero, and their tokens None.
    """

    logits: Tensor
    inputs: dict[str, Tensor]
    tokens: list[Tokens | None]


class Passes:
    """The passes of one micro-batch.

    Args:
        completions: token ids of each of its rows, all different.
        width: columns of its responses, padding included.
        signal: `(B,)` distillation mask, None where the trainer shows none.
    """

    def __init__(
        self, completions: Sequence[Sequence[int]], width: int, signal: Tensor | None
    ) -> None:
        self.completions, self.width = completions, width
        self.signal = None if signal is None else signal.cpu() != 0
        self.passes: list[Pass] = []
        self.other_student_rows: list[list[int]] = []

    def add(
        self, side: str, model_inputs: dict[str, Tensor], positions: Tensor, logits: Tensor
    ) -> ToBatch:
        """Note a pass.

        Args:
            side: as `side_of` says.
            model_inputs: `input_ids` `(rows, L)`, and further ones of `MODEL_INPUTS` as passed.
            positions: those in effect, `(rows, L)` or one row for all.
            logits: `(rows, L', V)` of the last `L' ≤ L` columns.

        Returns:
            What takes a tensor like `logits` to `(B, T, V)`, zeros at rows that are not answered.

        Raises:
            CandidateError: its rows are unknown.
        """
        tokens = tokens_of(model_inputs, positions)
        rows = self.rows_answered(side, [entry["input_ids"] for entry in tokens])
        columns = columns_of(model_inputs, [self.completions[row] for row in rows], self.width)

        def taken(values: Tensor) -> Tensor:
            cut = model_inputs["input_ids"].shape[1] - values.shape[1]
            return at_responses(values.detach(), columns, cut, self.width)

        def to_batch(values: Tensor) -> Tensor:
            return joined([(rows, taken(values))], len(self.completions))

        moved_inputs = at_the_end(model_inputs, positions, columns, self.width)
        as_given = {name: value.detach().clone() for name, value in model_inputs.items()}
        inputs = moved_inputs if columns else as_given
        with_gradient = torch.is_grad_enabled()
        self.passes.append(
            Pass(side, with_gradient, rows, inputs, moved_inputs, taken(logits), tokens)
        )
        return to_batch

    def add_other_student_pass(self, model_inputs: dict[str, Tensor]) -> None:
        """Note the rows of a pass of the student that is not its answer, as for old log-probs."""
        ids, mask = model_inputs["input_ids"], mask_of(model_inputs)
        self.other_student_rows += [row[kept].tolist() for row, kept in zip(ids, mask, strict=True)]

    def rows_answered(self, side: str, tokens: Sequence[Sequence[int]]) -> list[int]:
        """Find the rows that a pass answers, by the completions that its tokens end with.

        Where they do not, whole passes are taken in order: all rows, or those with a teacher
        signal, or the first one where there is none.

        Raises:
            CandidateError: none of that is possible.
        """
        endings = [self._row_ending(row) for row in tokens]
        if None not in endings and len(set(endings)) == len(endings):
            return [row for row in endings if row is not None]
        everything = list(range(len(self.completions)))
        if len(tokens) == len(everything):
            return everything
        if self.signal is not None:
            with_signal = self.signal.nonzero().flatten().tolist() or [0]
            if len(tokens) == len(with_signal):
                return with_signal
        raise CandidateError(
            "log_probs",
            f"a pass of the {side} over {len(tokens)} rows, of which some end with none of the "
            f"completions of the {len(everything)} rows of the micro-batch: which rows it answers "
            "cannot be told",
        )

    def _row_ending(self, ids: Sequence[int]) -> int | None:
        """Find the row whose completion these tokens end with, the longest if several do."""
        ends = [
            (len(completion), row)
            for row, completion in enumerate(self.completions)
            if list(ids[-len(completion) :]) == list(completion)
        ]
        return max(ends)[1] if ends else None

    def passes_of(self, side: str) -> list[Pass]:
        """Return the passes of a side.

        The student's are those with gradient. Where one module is both sides, the teacher's are
        those without, but for those that ask what the student's asks if there are further ones.
        """
        if side == STUDENT:
            return [p for p in self.passes if p.side in (STUDENT, EITHER) and p.with_gradient]
        teachers = [p for p in self.passes if p.side == TEACHER]
        shared = [p for p in self.passes if p.side == EITHER and not p.with_gradient]
        return teachers or [p for p in shared if self._asks_otherwise(p)] or shared

    def _asks_otherwise(self, seen: Pass) -> bool:
        """Whether a pass asks something else than the student's passes with gradient."""
        asked_of_student = self._asked_of_student()
        return any(tokens["input_ids"] not in asked_of_student for tokens in seen.tokens)

    def _asked_of_student(self) -> list[list[int]]:
        """Return the tokens of all rows of the student's passes with gradient."""
        return [tokens["input_ids"] for seen in self.passes_of(STUDENT) for tokens in seen.tokens]

    def check_teacher(self) -> None:
        """Check that it was not the student that answered in place of the teacher.

        Raises:
            CandidateError: nothing that the adapter names as teacher answered, but the student did.
        """
        asked_of_student = self._asked_of_student()
        others = [
            row
            for row in self.other_student_rows
            if row not in asked_of_student and self._row_ending(row) is not None
        ]
        if others and not self.passes_of(TEACHER):
            raise CandidateError(
                "log_probs",
                "what the adapter names as teacher (`teacher`, `teacher_adapters`) answered "
                "nothing, but the student answered, without gradient, prompts that are not its "
                "own: either the trainer's teacher is the student, or the adapter names another",
            )

    def together(self, side: str) -> "Answer | None":
        """Join all passes of a side; None if there were none.

        Of a row that the student answers twice the first answer counts; gradients add up elsewhere.

        Raises:
            CandidateError: a row is answered in two ways, so that nobody knows which one is used,
                or a row with a teacher signal is not answered.
        """
        passes, count = self.passes_of(side), len(self.completions)
        if not passes:
            return None
        self._check(side, passes)
        tokens: list[Tokens | None] = [None] * count
        for seen in reversed(passes):
            for row, entry in zip(seen.rows, seen.tokens, strict=True):
                tokens[row] = entry
        if len(passes) == 1:
            (only,) = passes
            answers = [(only.rows, {**only.inputs, LOGITS: only.logits})]
        else:
            length = max(seen.moved_inputs["input_ids"].shape[1] for seen in passes)
            answers = [
                (seen.rows, {**widened(seen.moved_inputs, length), LOGITS: seen.logits})
                for seen in reversed(passes)
            ]
        joined_values = {
            name: joined([(rows, values[name]) for rows, values in answers], count)
            for name in answers[0][1]
        }
        return Answer(joined_values.pop(LOGITS), joined_values, tokens)

    def _check(self, side: str, passes: Sequence[Pass]) -> None:
        """Check that each row is answered in one way, and each with a teacher signal at all.

        Raises:
            CandidateError: otherwise.
        """
        known: dict[int, tuple[Tokens, Tensor]] = {}
        for seen in passes:
            for row, tokens, logits in zip(seen.rows, seen.tokens, seen.logits, strict=True):
                first_tokens, first = known.setdefault(row, (tokens, logits))
                same = first_tokens["input_ids"] == tokens["input_ids"]
                if not same or (side == TEACHER and not same_bits(first, logits)):
                    raise CandidateError(
                        "log_probs",
                        f"the {side} is asked about row {row} of a micro-batch twice, with other "
                        f"{'answers' if same else 'tokens'}: which pass the loss takes cannot be "
                        "told",
                    )
        signal = [] if self.signal is None else self.signal.nonzero().flatten().tolist()
        if missing := sorted(set(signal) - set(known)):
            raise CandidateError(
                "log_probs",
                f"the {side} was not seen to answer rows {missing} of a micro-batch, which have a "
                "teacher signal",
            )
