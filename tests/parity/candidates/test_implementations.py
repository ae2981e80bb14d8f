"""The two candidates that expose every stage: ours and the transcription."""

from dataclasses import replace

import pytest
import torch

from sdpo.parity.candidates.implementations import WHOLE, Own, Transcription, reference_loss
from sdpo.parity.cases.stages import NAMES
from sdpo.parity.relations.transformed_cases import generated


def test_each_shows_all_stages_but_the_settings_which_only_ours_has():
    assert Own().stages == NAMES
    assert set(NAMES) - set(Transcription().stages) == {"config"}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_teacher_that_is_the_student_teaches_nothing(kind, stand_in):
    stand_in()
    case = generated("equal", 1)
    case = replace(case, teacher_logits=case.student_logits)
    found = kind().trace(case)
    assert found["aggregate"].item() == pytest.approx(0.0, abs=1e-7)
    assert found["gradient"].abs().max().item() == pytest.approx(0.0, abs=1e-7)


def test_the_transcription_as_a_function_has_the_loss_of_its_trace():
    case = generated("some", 1, distillation_topk=6)
    inputs = (case.student_logits, case.teacher_logits, case.responses, case.response_mask)
    loss = reference_loss(*inputs, config=case.config)
    assert torch.equal(loss, Transcription().trace(case)["aggregate"])
