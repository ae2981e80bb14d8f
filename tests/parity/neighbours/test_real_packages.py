"""What the table says of each package, computed apart from it; skipped where a package is not.

`python docs/neighbours.py --tests` runs these beside each package.
"""

import importlib
import importlib.metadata
import inspect
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sdpo.parity.neighbours.packages import attribute_of, neighbours
from sdpo.parity.relations.transformed_cases import generated
from sdpo.reference.loss import divergence, loss_from_logits
from tests.helpers.stand_in_neighbours import forget_wrappers

WIDTH, K = 16, 6


@pytest.fixture(autouse=True)
def without_the_warning_of_experiments(monkeypatch):
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    forget_wrappers()
    yield
    forget_wrappers()


def wrapper(name) -> Any:
    row = neighbours()[name]
    module, attribute = row.candidate.split(":")
    if row.install:
        package = row.install[0].partition("==")[0]
        found = [d.version for d in importlib.metadata.distributions(name=package)]
        if row.version not in found:
            pytest.skip(f"{package} {row.version} is not installed: {row.fix}")
    try:
        value = getattr(importlib.import_module(module), attribute)
        return value() if inspect.isclass(value) else value
    except ImportError:
        pytest.skip(f"{name} is not importable: {row.fix}")


def case_of(**settings):
    return generated("real", 5, WIDTH, **settings)


def call(function, case, student: Tensor | None = None, teacher: Tensor | None = None):
    """Loss and gradient."""
    student = case.student_logits if student is None else student
    leaf = student.clone().requires_grad_(True)
    teacher = case.teacher_logits if teacher is None else teacher
    loss = function(leaf, teacher, case.responses, case.response_mask, config=case.config)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


def transcribed(case, student=None, teacher=None, **changes):
    def loss(student, teacher, responses, mask, *, config):
        settings = {
            name: getattr(config, name)
            for name in ("temperature", "alpha", "full_logit_distillation", "distillation_topk")
        }
        add_tail = config.distillation_add_tail
        settings = {**settings, "distillation_add_tail": add_tail, **changes}
        return loss_from_logits(student, teacher, responses, mask, **settings)

    return call(loss, case, student, teacher)


def close(one, other):
    torch.testing.assert_close(one, other)
    return True


TOPK = {"distillation_topk": K, "distillation_add_tail": False}
CLOSE = [
    *((name, {"alpha": alpha}) for name in ("ms-swift", "trl-gkd", "opsd") for alpha in (0.0, 0.3)),
    *((name, {"alpha": alpha}) for name in ("trl-distillation", "liger") for alpha in (0.3, 1.0)),
    *((name, settings) for name in ("trl-sdft", "trl-sdpo") for settings in (TOPK, {"alpha": 1.0})),
    ("trl-sdpo", {"distillation_topk": K}),
    ("trl-sdft", {"full_logit_distillation": False, "alpha": 1.0}),
    ("claas", {"full_logit_distillation": False, "alpha": 1.0}),
    ("verl-kl", {"alpha": 0.0}),
    ("rlhf-book", {"distillation_topk": K, "alpha": 1.0}),
]


@pytest.mark.parametrize(("name", "settings"), CLOSE)
def test_what_it_computes_is_sdpos(name, settings):
    case = case_of(**settings, **({} if name == "rlhf-book" else {"temperature": 0.7}))
    close(call(wrapper(name), case), transcribed(case))


@pytest.mark.parametrize("name", ["ms-swift", "opsd", "claas"])
def test_the_teacher_chooses_the_topk(name):
    case = case_of(**TOPK, temperature=0.7)
    ids = case.teacher_logits.topk(K).indices
    assert (ids != case.student_logits.topk(K).indices).any()
    close(call(wrapper(name), case), transcribed(case, topk_indices=ids))


@pytest.mark.parametrize("name", ["trl-distillation", "verl-kl"])
def test_float64_is_computed_in_float32(name):
    case = case_of(alpha=0.0)
    wide = call(wrapper(name), case, case.student_logits.double(), case.teacher_logits.double())
    narrow = call(wrapper(name), case)
    assert torch.equal(wide[0].float(), narrow[0])
    right = transcribed(case, case.student_logits.double(), case.teacher_logits.double())
    assert not torch.equal(wide[0].double(), right[0])
    assert not torch.equal(wide[1], right[1])


def test_a_gradient_below_the_rounding_of_float32_is_lost():
    case = case_of(alpha=0.0)
    student = case.teacher_logits.double()
    teacher = student + 1e-12 * case.student_logits.double()
    theirs = call(wrapper("trl-distillation"), case, student, teacher)[1]
    right = transcribed(case, student, teacher)[1]
    assert right.norm() > 0
    assert 2 * (theirs - right).norm() > right.norm()


def test_liger_sums_the_loss_in_float32_and_keeps_the_gradients_dtype():
    case = case_of(alpha=0.3)
    both = case.student_logits.double(), case.teacher_logits.double()
    loss, gradient = call(wrapper("liger"), case, *both)
    right = transcribed(case, *both)
    assert loss.dtype == torch.float32
    assert not torch.equal(loss.double(), right[0])
    assert gradient.dtype == torch.float64
    close(gradient, right[1])


def on_teachers_topk(case, student=None, teacher=None):
    """`KL(teacher‖student)`, of whose terms only those of the teacher's top-k are added."""
    ids = (case.teacher_logits if teacher is None else teacher).topk(K).indices

    def loss(student, teacher, responses, mask, *, config):
        s, t = (x.log_softmax(-1).gather(-1, ids) for x in (student, teacher))
        return (divergence(s, t, 0.0) * mask).sum() / mask.sum()

    return call(loss, case, student, teacher)


def test_verls_topk_keeps_its_sum_below_one():
    case = case_of(**TOPK, alpha=0.0)
    given = call(wrapper("verl-topk"), case)
    close(given, on_teachers_topk(case))
    ids = case.teacher_logits.topk(K).indices
    assert not torch.allclose(given[0], transcribed(case, topk_indices=ids)[0])
    # a student that is surer of the same entries
    surer = case.teacher_logits.scatter_add(-1, ids, torch.ones(ids.shape))
    assert call(wrapper("verl-topk"), case, surer)[0] < 0


def test_verls_floor_takes_the_gradient_of_what_the_student_excludes():
    case = case_of(**TOPK, alpha=0.0)
    wanted, counted = case.teacher_logits.argmax(-1, keepdim=True), case.response_mask.bool()
    excluding = case.student_logits.scatter(-1, wanted, -30)
    far = call(wrapper("verl-topk"), case, excluding)
    farther = call(wrapper("verl-topk"), case, excluding.scatter(-1, wanted, -60))
    assert torch.equal(far[0], farther[0])
    assert (far[1].gather(-1, wanted)[counted] >= 0).all()
    assert (on_teachers_topk(case, excluding)[1].gather(-1, wanted)[counted] < 0).all()


def test_verls_topk_is_computed_in_float32():
    case = case_of(**TOPK, alpha=0.0)
    both = case.student_logits.double(), case.teacher_logits.double()
    assert call(wrapper("verl-topk"), case, *both)[0].dtype == torch.float32


def test_arenos_gradient_does_not_depend_on_the_teacher():
    case = case_of(full_logit_distillation=False, alpha=1.0)
    function = wrapper("areno-opd")
    _, gradient = call(function, case)
    _, other = call(function, case, teacher=-case.teacher_logits)
    assert torch.equal(gradient, other)
    own = case.student_logits.softmax(-1)
    one_hot = torch.nn.functional.one_hot(case.responses, WIDTH)
    mask = case.response_mask.unsqueeze(-1)
    close(gradient, (one_hot - own) * mask / mask.sum())
    # its mean over the student's samples
    close(
        (torch.eye(WIDTH) - own.unsqueeze(-2)).mul(own.unsqueeze(-1)).sum(-2),
        torch.zeros(own.shape),
    )


def test_arenos_temperature_only_scales():
    case = case_of(full_logit_distillation=False, alpha=1.0)
    cold = replace(case, config=replace(case.config, temperature=0.5))
    function = wrapper("areno-opd")
    for one, other in zip(call(function, case), call(function, cold), strict=True):
        close(2 * one, other)


def test_areno_opd_imports_a_module_that_it_does_not_bring():
    wrapper("areno-opd")
    with pytest.raises(ImportError):
        importlib.import_module(neighbours()["areno-opd"].module)


def test_opsd_gives_nan_where_nothing_counts():
    case = case_of(alpha=0.3)
    nothing = replace(case, response_mask=torch.zeros_like(case.response_mask))
    assert call(wrapper("opsd"), nothing)[0].isnan()


def test_claas_gives_nan_where_a_probability_underflows():
    case = case_of(**TOPK, alpha=0.5)
    chosen = case.teacher_logits.topk(K).indices[..., :1]
    far = case.student_logits.scatter(-1, chosen, -200)
    loss, gradient = call(wrapper("claas"), case, far)
    assert loss.isnan()
    assert gradient.isnan().any()
    ids = case.teacher_logits.topk(K).indices
    right = transcribed(case, far, topk_indices=ids)
    assert right[0].isfinite()
    assert right[1].isfinite().all()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("claas", {"full_logit_distillation": False, "alpha": 1.0}),
        ("rlhf-book", {"distillation_topk": K, "alpha": 1.0}),
    ],
)
def test_a_nan_at_a_masked_place_reaches_the_loss(name, settings):
    case = case_of(**settings)
    row, token = (case.response_mask == 0).nonzero()[0].tolist()
    broken = case.student_logits.clone()
    broken[row, token] = torch.nan
    assert call(wrapper(name), case, broken)[0].isnan()
    assert transcribed(case, broken)[0].isfinite()


def test_rlhf_book_passes_over_a_loss_that_is_not_finite():
    wrapper("rlhf-book")
    loss = attribute_of("rlhf-book")(kl_top_k=K)
    case, calls = case_of(distillation_topk=K, alpha=1.0), []

    def chunk_loss(*_):
        calls.append(1)
        return torch.tensor(torch.nan if len(calls) == 1 else 2.0)

    loss.rollout_chunk, loss._chunk_loss = 2, chunk_loss
    assert loss(None, {"action_mask": case.response_mask}) == 2.0
    assert len(calls) == 2
