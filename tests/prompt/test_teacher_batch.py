"""The whole batch: prompts, mask and metrics of a few rows, by hand."""

from typing import Any

import torch

from sdpo.prompt.teacher_batch import Attempts, Processes, TeacherBatch, teacher_batch
from sdpo.settings.stage_settings import PromptSettings
from tests.helpers.char_tokenizer import SETTINGS, CharTokenizer, chars, ids, rewards, user


def batch(texts: list[str], scores: Any, uids: Any, feedbacks: Any) -> TeacherBatch:
    width = max(map(len, texts))
    attempts = Attempts(
        [user(f"q{row}") for row in range(len(texts))],
        ids(*texts, width=width),
        torch.ones(len(texts), width),
        rewards(*scores),
        uids,
        feedbacks,
    )
    return teacher_batch(attempts, CharTokenizer(), PromptSettings(**SETTINGS))


def test_metrics_by_hand():
    """Three groups: a (rows 0, 1), b (row 2) and c (row 3).

    Row 0 succeeds, so row 1 has a demonstration and its feedback is not used. Row 2 has no success
    to look at and uses its feedback. Row 3 has nothing. So rows 1 and 2 have a signal.
    """
    built = batch(["w", "x", "y", "z"], [1, 0, 0, 0], "aabc", [None, "f", "g", None])
    assert built.distillation_mask.tolist() == [0, 1, 1, 0]
    assert built.metrics == {
        "self_distillation/success_group_fraction": 1 / 3,
        "self_distillation/success_sample_fraction": 1 / 4,
        "self_distillation/feedback_available_fraction": 2 / 4,
        "self_distillation/feedback_used_fraction": 1 / 4,
        "self_distillation/reprompt_sample_fraction": 0.5,
    }
    assert chars(built.tokens.input_ids[1]) == "u:q1 S=w!|A:x"


def test_trace_has_the_stages_in_order():
    built = batch(["w"], [1], "a", [])
    assert list(built.trace) == [
        "response_texts",
        "feedback",
        "demonstration",
        "teacher_prompt",
        "teacher_tokens",
        "distillation_mask",
    ]


def test_a_process_builds_its_own_rows_and_chooses_from_everyones():
    """Two processes with one row each, of one group; only the second row succeeded.

    The first row's teacher is shown the second process's response `y`, and the second row has no
    other success to look at. Both report the same fractions of both rows.
    """
    texts, feedbacks = ["x", "y"], [None, None]
    built = []
    for first, text in enumerate(texts):
        everyones = iter([texts, feedbacks])
        attempts = Attempts(
            [user(f"q{first}")], ids(text, width=1), torch.ones(1, 1), rewards(0, 1), "aa"
        )
        processes = Processes(gather=lambda own, rows=everyones: next(rows), first_row=first)
        built.append(
            teacher_batch(
                attempts, CharTokenizer(), PromptSettings(**SETTINGS), processes=processes
            )
        )
    assert [chars(batch.tokens.input_ids[0]) for batch in built] == ["u:q0 S=y!|A:x", "u:q1|A:y"]
    assert [batch.distillation_mask.tolist() for batch in built] == [[1], [0]]
    assert built[0].metrics == built[1].metrics
    assert built[0].metrics["self_distillation/reprompt_sample_fraction"] == 0.5
