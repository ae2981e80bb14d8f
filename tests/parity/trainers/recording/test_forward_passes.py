"""Which pass is whose: any order and number of passes give one record, or an error says why."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from sdpo.parity.cases.checked_call import CandidateError
from sdpo.parity.compare.statuses import FAILING, Status
from sdpo.parity.trainers.judge.run_scenarios import run_trainer_family
from sdpo.parity.trainers.recording.forward_passes import (
    EITHER,
    NEITHER,
    STUDENT,
    TEACHER,
    Passes,
    side_of,
)
from sdpo.parity.trainers.recording.hf_trainer import HFTrainerAdapter
from sdpo.parity.trainers.recording.token_layout import padding_inside
from sdpo.parity.trainers.scenarios.catalogue import SCENARIOS
from tests.helpers.trainers import laid_out_trainers as faulty

pytestmark = pytest.mark.usefixtures("packages_are_looked_up_once")

BY_ID = {scenario.id: scenario for scenario in SCENARIOS}


def audited(trainer: type, *scenarios: str):
    """Results of some scenarios, and the faults that explain them."""
    chosen = [BY_ID[name] for name in scenarios]
    found = run_trainer_family(faulty.adapter_of(trainer), lambda *_: None, chosen)
    return found.results, found.explained


def failing(result) -> dict[str, str]:
    """The stages of a scenario that diverge, with the stage that each follows from."""
    return {c.stage: c.inherits for c in result.comparisons if c.status in FAILING}


@pytest.mark.parametrize(
    "trainer",
    [faulty.OldInside, faulty.RowByRow, faulty.RowByRowBackwards],
    ids=lambda t: t.__name__,
)
def test_passes_in_another_order_or_number_are_no_deviation(trainer):
    # T10 has rows without signal, T05 several micro-batches and old log-probs
    results, explained = audited(trainer, "T10", "T05")
    assert {result.status for result in results} <= {Status.MATCH, Status.PASS}, [
        failing(r) for r in results
    ]
    assert not explained


@pytest.mark.parametrize(
    ("trainer", "least"),
    [(faulty.PromptPaddedRight, 6), (faulty.PaddingSeen, 6), (faulty.PositionsRestart, 6)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_another_layout_of_the_teachers_tokens_shows_at_tokens_and_answer(trainer, least):
    ((result,), _) = audited(trainer, "T01")
    assert failing(result) == {"teacher_tokens": "", "log_probs": "teacher_tokens"}
    assert result.first_stage == "teacher_tokens"
    assert max(c.max_abs for c in result.comparisons if c.stage == "log_probs") > least


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        (faulty.LiveTeacher, "the trainer's teacher is the student, or the adapter names another"),
        (faulty.AsksTwice, "asked about row 0 of a micro-batch twice, with other tokens"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_cannot_be_attributed_is_an_error_that_says_why(trainer, message):
    ((result,), explained) = audited(trainer, "T01")
    ((comparison),) = result.comparisons
    assert (comparison.stage, comparison.status) == ("log_probs", Status.ERROR)
    assert message in comparison.note
    assert not explained


# --- whose a pass is -------------------------------------------------------------------------


def adapter_with(teacher: nn.Module | None) -> HFTrainerAdapter:
    class Adapter(HFTrainerAdapter):
        name = "any"

        def build(self, parts):
            raise NotImplementedError

        def teacher(self, trainer):
            return teacher

    return Adapter()


def test_a_pass_belongs_to_the_module_that_the_adapter_names():
    student, teacher, other = (nn.Linear(1, 1) for _ in range(3))
    trainer = SimpleNamespace(model=student)
    own = adapter_with(teacher)
    assert [side_of(own, trainer, m) for m in (student, teacher, other)] == [
        STUDENT,
        TEACHER,
        NEITHER,
    ]
    assert side_of(adapter_with(student), trainer, student) == EITHER
    assert side_of(adapter_with(None), trainer, student) == STUDENT


def test_a_pass_of_a_shared_model_belongs_to_its_active_adapters():
    peft = pytest.importorskip("peft")
    base = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    settings = peft.LoraConfig(target_modules=["0", "1"], r=1)
    model: Any = peft.get_peft_model(base, settings)
    model.add_adapter("teacher", settings)
    model.add_adapter("other", settings)
    trainer, own = SimpleNamespace(model=model), adapter_with(model)
    assert side_of(own, trainer, model) == STUDENT
    model.set_adapter("teacher")
    assert side_of(own, trainer, model) == TEACHER
    model.set_adapter("default")
    with model.disable_adapter():
        assert side_of(own, trainer, model) == NEITHER
    model.base_model.model[1].set_adapter("other")
    with pytest.raises(CandidateError, match="different adapters"):
        side_of(own, trainer, model)


COMPLETIONS = [(11, 12, 9), (13, 9), (14, 15, 16, 9)]
WIDTH, VOCABULARY = 4, 5


def asked(passes: Passes, side: str, rows: list[int], *, prompt: int = 3, graded: bool = False):
    """A pass over some rows, without padding in front and as wide as its longest row."""
    length = prompt + max(len(COMPLETIONS[row]) for row in rows)
    ids = torch.zeros(len(rows), length, dtype=torch.long)
    for place, row in enumerate(rows):
        tokens = [prompt + row] * prompt + list(COMPLETIONS[row])
        ids[place, : len(tokens)] = torch.tensor(tokens)
    given = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    logits = ids[..., None].expand(*ids.shape, VOCABULARY).float()
    with torch.set_grad_enabled(graded):
        passes.add(side, given, torch.arange(length)[None], logits)


def test_passes_over_rows_of_any_width_are_put_together():
    passes = Passes(COMPLETIONS, WIDTH, torch.tensor([1.0, 1.0, 1.0]))
    for rows in ([2], [1, 0]):
        asked(passes, TEACHER, rows)
    answer = passes.together(TEACHER)
    assert answer is not None
    for row, completion in enumerate(COMPLETIONS):
        before = [3 + row, *completion[:-1]]
        assert answer.logits[row, : len(completion), 0].tolist() == before
        assert answer.inputs["input_ids"][row, -WIDTH:][: len(completion)].tolist() == list(
            completion
        )
        assert answer.tokens[row] == {
            "input_ids": [3 + row] * 3 + list(completion),
            "position_ids": list(range(3 + len(completion))),
            "padding_inside": 0,
        }


def test_passes_of_the_student_that_are_not_its_answer_are_left_aside():
    passes = Passes(COMPLETIONS, WIDTH, None)
    asked(passes, STUDENT, [0, 1, 2], graded=True)
    own = passes.passes[0].moved_inputs
    passes.add_other_student_pass(own)
    passes.add_other_student_pass({"input_ids": torch.tensor([[7, 7, 7]])})
    passes.check_teacher()
    passes.add_other_student_pass({"input_ids": torch.tensor([[7, 7, *COMPLETIONS[1]]])})
    with pytest.raises(
        CandidateError, match="the trainer's teacher is the student, or the adapter"
    ):
        passes.check_teacher()
    asked(passes, TEACHER, [0, 1, 2])
    passes.check_teacher()


def test_of_a_module_that_is_both_sides_the_students_question_is_not_the_teachers():
    passes = Passes(COMPLETIONS, WIDTH, None)
    asked(passes, EITHER, [0, 1, 2])
    asked(passes, EITHER, [0, 1, 2], prompt=5)
    asked(passes, EITHER, [0, 1, 2], graded=True)
    (teacher,) = passes.passes_of(TEACHER)
    assert teacher.tokens[0]["input_ids"][0] == 5
    assert len(passes.passes_of(STUDENT)) == 1


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda p: [asked(p, TEACHER, [0, 1])], r"not seen to answer rows \[2\]"),
        (
            lambda p: [asked(p, TEACHER, [0, 1, 2]), asked(p, TEACHER, [1], prompt=4)],
            "row 1 of a micro-batch twice, with other tokens",
        ),
    ],
)
def test_a_row_that_is_left_out_or_asked_twice_is_an_error(ask, message):
    passes = Passes(COMPLETIONS, WIDTH, torch.ones(3))
    ask(passes)
    with pytest.raises(CandidateError, match=message):
        passes.together(TEACHER)


def test_rows_that_end_with_no_completion_are_taken_in_order_or_refused():
    passes = Passes(COMPLETIONS, WIDTH, torch.tensor([0.0, 1.0, 1.0]))
    assert passes.rows_answered(TEACHER, [[1], [2], [3]]) == [0, 1, 2]
    assert passes.rows_answered(TEACHER, [[1], [2]]) == [1, 2]
    with pytest.raises(CandidateError, match="which rows it answers cannot be told"):
        passes.rows_answered(TEACHER, [[1]])


@pytest.mark.parametrize(
    ("mask", "inside"), [([0, 0, 1, 1], 0), ([1, 1, 0, 0], 0), ([0, 1, 0, 0, 1, 0], 2), ([0, 0], 0)]
)
def test_padding_inside_is_what_stands_between_attended_tokens(mask, inside):
    assert padding_inside(torch.tensor(mask).bool()) == inside
