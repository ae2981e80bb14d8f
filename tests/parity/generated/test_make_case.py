"""A case is what its row says, is made again from its name, and repeats."""

import random

import pytest
import torch

from sdpo.parity.cases.checked_call import same_bits
from sdpo.parity.generated.factors import table
from sdpo.parity.generated.make_case import case_id, make_again, make_case, row_and_seed
from sdpo.parity.generated.make_logits import make_logits
from sdpo.parity.generated.random_rows import random_row

PLAIN = {factor: values[0] for factor, values in table().factors.items()}


def made(**changes):
    return make_case({**PLAIN, **changes}, 0)


def tensor(name, **changes) -> torch.Tensor:
    value = getattr(made(**changes), name)
    assert value is not None
    return value


def test_a_name_holds_row_and_seed():
    chance = random.Random(3)
    for _ in range(50):
        row = random_row(chance)
        assert row_and_seed(case_id(row, 7)) == (row, 7)


def test_a_case_is_made_again_from_its_name_alone():
    row = random_row(random.Random(5))
    case = make_case(row, 3)
    again = make_again(case.id)
    assert case.config == again.config
    assert case.call == again.call
    for name in ("student_logits", "teacher_logits", "responses", "response_mask"):
        assert same_bits(getattr(case, name), getattr(again, name)), name
    assert not same_bits(case.responses, make_case({**row, "responses": "any"}, 4).responses)


def test_another_name_is_refused():
    with pytest.raises(ValueError, match="no generated case"):
        make_again("recorded-1-2")


def test_sizes_dtypes_and_settings_are_the_rows():
    case = made(rows=3, tokens=9, vocabulary=7, dtypes="float32 bfloat16", mask="uint8")
    assert case.student_logits.shape == (3, 9, 7)
    assert (case.student_logits.dtype, case.teacher_logits.dtype) == (torch.float32, torch.bfloat16)
    assert case.response_mask.dtype == torch.uint8
    whole = made(mode="topk_tail", support="V + 3", clip=0.5, ratio="1", temperature=2.0)
    assert (whole.mode, whole.config.distillation_topk) == ("topk_tail", 19)
    assert (whole.config.is_clip, whole.config.temperature) == (0.5, 2.0)
    own = (whole.student_logits / 2).log_softmax(-1).gather(-1, whole.responses[..., None])[..., 0]
    assert whole.old_log_probs is not None
    assert torch.equal(whole.old_log_probs, own)


def test_masks_are_what_they_are_called():
    def lengths(name):
        return made(rows=9, tokens=9, lengths=name).response_mask

    assert lengths("full").all()
    assert lengths("one token").sum(-1).tolist() == [1] * 9
    assert lengths("empty row").sum(-1)[1] == 0
    assert lengths("empty row").sum(-1)[0] > 0
    ragged, left = lengths("ragged"), lengths("left padded")
    assert bool((ragged.diff(dim=-1) <= 0).all())
    assert bool((left.diff(dim=-1) >= 0).all())
    assert bool((lengths("gaps").diff(dim=-1) > 0).any())


def test_rows_without_teacher_weights_and_responses_are_what_they_are_called():
    assert tensor("self_distillation_mask", rows=3, signal="some rows").tolist() == [1.0, 0.0, 1.0]
    assert tensor("self_distillation_mask", rows=3, signal="one row").tolist() == [1.0, 0.0, 0.0]
    assert made(signal="none").self_distillation_mask is None
    zeros = tensor("rollout_is_weights", rows=9, weights="0 in places")
    assert bool((zeros == 0).any())
    assert bool((zeros > 0).any())
    assert bool((tensor("rollout_is_weights", rows=9, weights="above 2") > 2).any())
    assert bool((made(responses="last entry").responses == 15).all())


def test_logits_are_what_they_are_called():
    shape = (4, 6, 16)

    def sides(kind):
        return make_logits(kind, shape, torch.Generator().manual_seed(0))

    def gaps(logits):
        return logits.sort(-1).values.diff(dim=-1)

    assert bool((gaps(sides("tied")[0]) == 0).any())
    near = gaps(sides("nearly tied")[0])
    assert bool(((near > 0) & (near < 1e-5)).any())
    student, teacher = sides("-inf")
    assert bool((teacher.isinf() & student.isfinite()).any())
    assert bool((teacher.isinf() & student.isinf()).any())
    assert torch.equal(*sides("equal sides"))
    assert sides("far apart")[0].abs().max() > 60
    assert bool((sides("peaked")[0].softmax(-1).amax(-1) > 0.99).all())
    with pytest.raises(ValueError, match="logits 'round': no such kind"):
        sides("round")
