"""Each wrapper asks its package for what the case asks: with a stand-in that is right it holds."""

import importlib
import inspect
from dataclasses import replace
from typing import Any

import pytest
import torch

from sdpo.parity.audit.run_loss_cases import judge_loss_case
from sdpo.parity.candidates.loss_functions import FromLogits
from sdpo.parity.neighbours.packages import neighbours
from sdpo.parity.relations.transformed_cases import generated
from tests.helpers import stand_in_neighbours

WIDTH = 16
MODES = {
    "full_vocab": {},
    "topk_renorm": {"distillation_topk": 6, "distillation_add_tail": False},
    "topk_tail": {"distillation_topk": 6},
    "sampled": {"full_logit_distillation": False, "alpha": 1.0},
}
TAKES = {
    "ms-swift": {"full_vocab", "topk_renorm"},
    "trl-gkd": {"full_vocab"},
    "trl-sdft": set(MODES),
    "trl-sdpo": set(MODES),
    "trl-distillation": {"full_vocab"},
    "liger": {"full_vocab"},
    "verl-kl": {"full_vocab"},
    "verl-topk": {"topk_renorm"},
    "areno-opd": {"sampled"},
    "opsd": {"full_vocab", "topk_renorm"},
    "claas": {"topk_renorm", "sampled"},
    "rlhf-book": {"topk_tail"},
}
ONLY_ALPHA = {"verl-kl": 0.0, "verl-topk": 0.0, "rlhf-book": 1.0}
TEACHERS_SUPPORT = {"verl-topk", "claas"}
NO_MEAN_OF_THEIRS = {"trl-sdft", "trl-sdpo", "verl-kl", "verl-topk", "areno-opd"}
WITH_RATIO = {"trl-sdft", "trl-sdpo", "claas"}
CALLS = [(name, mode) for name, modes in TAKES.items() for mode in sorted(modes)]


@pytest.fixture(autouse=True)
def packages(monkeypatch, tmp_path):
    """Stand-ins in place of the packages, and wrappers that were imported for this test alone."""
    stand_in_neighbours.forget_wrappers()
    stand_in_neighbours.install(monkeypatch, tmp_path)
    yield
    stand_in_neighbours.forget_wrappers()


def wrapper(name) -> Any:
    module, attribute = neighbours()[name].candidate.split(":")
    value = getattr(importlib.import_module(module), attribute)
    return value() if inspect.isclass(value) else value


def case_of(name, mode, **changes):
    """A case with rows that do not count, of a kind that the neighbour takes."""
    settings = {**MODES[mode], **changes}
    if name in ONLY_ALPHA:
        settings.setdefault("alpha", ONLY_ALPHA[name])
    if name in TEACHERS_SUPPORT and mode == "topk_renorm":
        settings["distillation_topk"] = WIDTH
    rows = torch.tensor([1, 0, 1, 1])
    return replace(generated(name, 3, WIDTH, **settings), self_distillation_mask=rows)


def refuses(name, case, words):
    with pytest.raises(NotImplementedError, match=words):
        call(wrapper(name), case)


def call(function, case):
    ratio = {} if case.old_log_probs is None else {"old_log_probs": case.old_log_probs}
    return function(
        case.student_logits,
        case.teacher_logits,
        case.responses,
        case.response_mask,
        self_distillation_mask=case.self_distillation_mask,
        config=case.config,
        **ratio,
    )


def holds(name, case):
    judged = judge_loss_case(FromLogits(name, wrapper(name)), case)
    assert {row.stage: row.status.name in ("MATCH", "PASS") for row in judged.comparisons} == {
        "aggregate": True,
        "gradient": True,
    }, judged


@pytest.mark.parametrize(("name", "mode"), CALLS)
def test_what_a_package_takes_reaches_it(name, mode):
    holds(name, case_of(name, mode))


@pytest.mark.parametrize(("name", "mode"), CALLS)
def test_temperature_reaches_it_or_is_refused(name, mode):
    case = case_of(name, mode, temperature=0.7)
    if name == "rlhf-book":
        refuses(name, case, "has no temperature")
    elif name == "areno-opd":  # the stand-in divides log-probs, as the package does
        at_one = replace(case, config=replace(case.config, temperature=1.0))
        assert 0.7 * call(wrapper(name), case) == pytest.approx(call(wrapper(name), at_one).item())
    else:
        holds(name, case)


@pytest.mark.parametrize(("name", "mode"), CALLS)
def test_another_mean_reaches_it_or_is_refused(name, mode):
    case = case_of(name, mode, loss_agg_mode="seq-mean-token-mean")
    if name in NO_MEAN_OF_THEIRS:
        holds(name, case)
    else:
        refuses(name, case, "has no other means")


@pytest.mark.parametrize(("name", "mode"), CALLS)
def test_the_ratio_reaches_it_or_is_refused(name, mode):
    case = case_of(name, mode, is_clip=1.1)
    if name in WITH_RATIO:
        holds(name, case)
    else:
        refuses(name, replace(case, old_log_probs=None), "has no ratio")


@pytest.mark.parametrize("name", TAKES)
def test_other_modes_are_refused(name):
    for mode in set(MODES) - TAKES[name]:
        refuses(name, replace(case_of(name, mode), old_log_probs=None), "has no ")


@pytest.mark.parametrize(("name", "alpha"), [("ms-swift", 0.0), ("trl-gkd", 1.0), ("liger", 0.3)])
def test_alpha_reaches_it(name, alpha):
    holds(name, case_of(name, "full_vocab", alpha=alpha))


@pytest.mark.parametrize("name", ONLY_ALPHA)
def test_an_alpha_that_it_has_not_is_refused(name):
    (mode,) = TAKES[name]
    refuses(name, case_of(name, mode, alpha=0.5), f"has no alpha other than {ONLY_ALPHA[name]:g}")


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_claas_has_no_topk_at_the_ends_of_alpha(alpha):
    refuses("claas", case_of("claas", "topk_renorm", alpha=alpha), "has no top-k with alpha 0 or 1")


@pytest.mark.parametrize("name", ["ms-swift", "trl-sdft", "trl-sdpo", "opsd", "rlhf-book"])
def test_a_topk_above_the_vocabulary_is_refused(name):
    mode = "topk_tail" if name == "rlhf-book" else "topk_renorm"
    case = case_of(name, mode, distillation_topk=WIDTH + 1)
    refuses(name, case, "has no K above the vocabulary")


def test_claas_is_given_no_impossible_token_as_one_of_the_topk():
    case = case_of("claas", "sampled")
    case.teacher_logits[0, 0, 0] = -torch.inf
    refuses("claas", case, "takes a top-k of the teacher, in which nothing is impossible")


@pytest.mark.parametrize("name", ["trl-distillation", "liger"])
def test_logits_that_no_hidden_states_give_are_refused(name):
    case = case_of(name, "full_vocab")
    case.teacher_logits[0, 0, 0] = -torch.inf
    refuses(name, case, "takes hidden states, whose logits are finite")
    with torch.autocast("cpu", torch.bfloat16):
        refuses(name, case_of(name, "full_vocab"), "takes hidden states, whose logits autocast")


@pytest.mark.parametrize("name", ["ms-swift", "trl-gkd", "liger", "opsd"])
def test_a_batch_in_which_nothing_counts_is_zero(name):
    case = case_of(name, "full_vocab")
    nothing = replace(case, response_mask=torch.zeros_like(case.response_mask))
    assert call(wrapper(name), nothing).item() == 0


def test_all_neighbours_are_tried():
    assert list(TAKES) == list(neighbours())
