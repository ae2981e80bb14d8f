"""One actor update on a toy model: plan, splits, skipping, clipping, errors; model building."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sdpo.fixtures import packaged_family
from sdpo.fixtures.models import build_model, build_optimizer
from sdpo.settings.config import SDPOConfig
from sdpo.update.actor_update import (
    ForwardSettings,
    UpdateReport,
    actor_update,
    hidden_between,
    plan,
    response_logits,
)

ROWS, PROMPT, WIDTH, VOCABULARY = 4, 3, 5, 11


class Toy(nn.Module):
    """A language model without attention: the logits depend on the last token alone."""

    def __init__(self, seed: int):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(VOCABULARY, VOCABULARY, generator=generator))

    def forward(self, input_ids: Tensor, **ignored: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table[input_ids])


class WithHead(Toy):
    """The same with a linear layer behind."""

    def __init__(self, seed: int):
        super().__init__(seed)
        self.head = nn.Linear(VOCABULARY, VOCABULARY)

    def forward(self, input_ids: Tensor, **ignored: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.head(self.table[input_ids]))


def toy_batch(lengths: tuple[int, ...] = (5, 2, 4, 1)) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(VOCABULARY, (ROWS, PROMPT + WIDTH), generator=generator)
    mask = (torch.arange(WIDTH) < torch.tensor(lengths)[:, None]).long()
    attention = torch.cat([torch.ones(ROWS, PROMPT, dtype=torch.long), mask], dim=1)
    inputs = {"input_ids": ids, "attention_mask": attention, "position_ids": attention.cumsum(1)}
    return {
        **inputs,
        **{f"teacher_{name}": tensor for name, tensor in inputs.items()},
        "responses": ids[:, -WIDTH:],
        "response_mask": mask,
        "old_log_probs": torch.full((ROWS, WIDTH), -5.0),
        "self_distillation_mask": torch.ones(ROWS),
    }


CONFIG = SDPOConfig(distillation_topk=4, is_clip=2.0, grad_clip=1e6)


def run(
    config: SDPOConfig = CONFIG, batch: dict[str, Tensor] | None = None, **options: Any
) -> tuple[Toy, Toy, UpdateReport]:
    student, teacher = Toy(0), Toy(1)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    options = {"mini_batch_size": 4, "micro_batch_size": 4} | options
    batch = toy_batch() if batch is None else batch
    report = actor_update(student, teacher, optimizer, batch, config, record=True, **options)
    return student, teacher, report


def changed(config: SDPOConfig = CONFIG, **changes: Any) -> SDPOConfig:
    return SDPOConfig(**{**vars(config), **changes})


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((4, 4, 2), [[([0, 1], 0.5), ([2, 3], 0.5)]]),
        ((4, 2, 2), [[([0, 1], 1.0)], [([2, 3], 1.0)]]),
        ((3, 2, 1), [[([0], 0.5), ([1], 0.5)], [([2], 0.5)]]),
        ((4, 4, 3), [[([0, 1, 2], 1.0), ([3], 1.0)]]),
        ((2, 2, 2, 2), [[([0, 1], 1.0)], [([0, 1], 1.0)]]),
        ((3, 3, 1, 1, [[[2, 0], [1]]]), [[([2, 0], 2 / 3), ([1], 1 / 3)]]),
    ],
)
def test_the_plan(arguments, expected):
    steps = plan(*arguments)
    assert [[(list(rows), scale) for rows, scale in step] for step in steps] == expected


def test_the_split_into_micro_batches_is_neutral_for_rows_of_equal_length():
    batch = toy_batch((3, 3, 3, 3))
    whole = run(batch=batch)
    for size in (1, 2):
        split = run(batch=batch, micro_batch_size=size)
        torch.testing.assert_close(split[2].gradients, whole[2].gradients)
        torch.testing.assert_close(split[0].table, whole[0].table)


def test_the_split_matters_for_ragged_rows_under_token_mean():
    norms = [run(micro_batch_size=size)[2].grad_norms[0] for size in (4, 2, 1)]
    assert len({round(norm, 4) for norm in norms}) == 3


def test_micro_batches_of_one_row_turn_token_mean_into_row_means():
    rows = run(micro_batch_size=1)[2]
    means = run(changed(loss_agg_mode="seq-mean-token-mean"))[2]
    torch.testing.assert_close(rows.gradients, means.gradients)


def test_given_groups_of_the_planned_rows_change_nothing():
    groups = [[[0, 1], [2, 3]]]
    torch.testing.assert_close(
        run(groups=groups)[2].gradients, run(micro_batch_size=2)[2].gradients
    )


def test_on_policy_the_ratio_is_one_and_only_a_cap_below_one_acts():
    """Off-policy, with the far old log-probs, the ratio is not one and every cap acts."""
    low, two, high = (changed(is_clip=cap) for cap in (0.5, 2.0, 10.0))
    norms = [run(config)[2].grad_norms for config in (low, two, high)]
    assert norms[1] == norms[2]
    assert norms[0] == pytest.approx([0.5 * norm for norm in norms[2]])
    off = [run(config, mini_batch_size=2, micro_batch_size=2)[2] for config in (low, high)]
    assert off[0].losses != off[1].losses


def test_a_non_finite_norm_skips_the_step_and_the_teacher():
    batch = toy_batch() | {"rollout_is_weights": torch.full((ROWS, WIDTH), float("inf"))}
    student, teacher, report = run(batch=batch)
    assert report.stepped == [False]
    assert torch.equal(student.table, Toy(0).table)
    assert torch.equal(teacher.table, Toy(1).table)
    assert student.table.grad is None


def test_clipping_scales_the_step_but_not_the_recorded_gradient():
    free, clipped = run(), run(changed(grad_clip=0.01))
    assert torch.equal(free[2].gradients[0]["table"], clipped[2].gradients[0]["table"])
    step = (clipped[0].table - Toy(0).table).norm().item()
    assert step == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_rows_without_a_teacher_prompt_give_no_gradient():
    batch = toy_batch() | {"self_distillation_mask": torch.zeros(ROWS)}
    student, _, report = run(batch=batch)
    assert (report.losses, report.grad_norms, report.stepped) == ([0.0], [0.0], [True])
    assert torch.equal(student.table, Toy(0).table)


def test_a_trust_region_of_the_student_alone_gives_no_loss():
    config = changed(teacher_regularization="trust-region", teacher_update_rate=1.0)
    student, teacher, report = run(config)
    assert report.losses[0] == pytest.approx(0.0, abs=1e-7)
    assert torch.equal(teacher.table, Toy(1).table)
    assert torch.allclose(student.table, Toy(0).table, atol=1e-6)


def test_nothing_is_recorded_unless_asked_for():
    report = quiet()
    assert (report.micro_batches, report.gradients) == ([], [])
    assert len(report.losses) == 1


def quiet() -> UpdateReport:
    student = Toy(0).eval()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    report = actor_update(
        student, Toy(1), optimizer, toy_batch(), CONFIG, mini_batch_size=4, micro_batch_size=4
    )
    assert student.training
    return report


def test_missing_tensors_are_all_named():
    batch = toy_batch()
    del batch["responses"], batch["teacher_input_ids"]
    with pytest.raises(ValueError, match=r"lacks \['teacher_input_ids', 'responses'\]"):
        run(batch=batch)


@pytest.mark.parametrize("size", [5, 0, -1])
def test_a_micro_batch_beyond_the_mini_batch_is_an_error(size):
    with pytest.raises(ValueError, match=f"mini-batch size 4.*not {size}"):
        run(micro_batch_size=size)


def test_building_a_model_is_reproducible_and_leaves_the_random_state_alone():
    family = packaged_family("update")
    state = torch.get_rng_state()
    first: Any = build_model(family, "B")
    second = build_model(family, "B")
    assert torch.equal(torch.get_rng_state(), state)
    assert first.state_dict().keys() == second.state_dict().keys()
    for tensor, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(tensor, other)
    assert first.get_output_embeddings().weight is first.get_input_embeddings().weight
    assert not first.training
    with pytest.raises(KeyError):
        build_model(family, "C")


def test_an_optimizer_is_built_from_its_recorded_arguments():
    config = {"name": "AdamW", "lr": 0.003, "betas": [0.9, 0.999], "weight_decay": 0.1}
    optimizer = build_optimizer(config, Toy(0).parameters())
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.param_groups[0]["weight_decay"] == 0.1
    assert config["name"] == "AdamW"
    with pytest.raises(AttributeError):
        build_optimizer({"name": "Nothing"}, Toy(0).parameters())


class Sparing(Toy):
    """As Toy; leaves out logits if it is asked to."""

    def forward(self, input_ids: Tensor, logits_to_keep: int = 0, **ignored: Any) -> Any:
        self.projected = self.table[input_ids[:, -logits_to_keep:]]
        return SimpleNamespace(logits=self.projected)


class Wrapper(nn.Module):
    """As DDP: passes everything on."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, **inputs: Any) -> Any:
        return self.module(**inputs)


@pytest.mark.parametrize("wrap", [lambda model: model, Wrapper], ids=["bare", "wrapped"])
def test_the_logits_of_the_prompt_are_left_out_if_the_model_can(wrap):
    batch, plain, sparing = toy_batch(), Toy(0), Sparing(0)
    expected = response_logits(plain, batch)
    assert torch.equal(response_logits(wrap(sparing), batch), expected)
    assert sparing.projected.shape[1] == WIDTH + 1 < batch["input_ids"].shape[1]


def test_the_policy_terms_count_rows_that_no_teacher_saw():
    batch = toy_batch() | {"self_distillation_mask": torch.zeros(ROWS)}
    student, _, report = run(changed(entropy_coeff=0.5), batch)
    assert report.losses == [0.0]
    assert report.grad_norms[0] > 0
    assert not torch.equal(student.table, Toy(0).table)


def test_an_anchor_at_the_policy_itself_has_no_pull():
    batch = toy_batch()
    logits = response_logits(Toy(0), batch).detach()
    own = logits.log_softmax(-1).gather(-1, batch["responses"].unsqueeze(-1)).squeeze(-1)
    anchored = changed(use_kl_loss=True, kl_loss_coef=3.0)
    _, _, plain = run(batch=batch)
    _, _, at_itself = run(anchored, batch | {"ref_log_prob": own})
    _, _, elsewhere = run(anchored, batch | {"ref_log_prob": own - 1})
    torch.testing.assert_close(at_itself.gradients, plain.gradients)
    assert elsewhere.grad_norms[0] != pytest.approx(plain.grad_norms[0], rel=0.01)


def test_an_anchor_without_its_log_probs_is_refused_before_anything_moves():
    with pytest.raises(ValueError, match=r"lacks \['ref_log_prob'\]"):
        run(changed(use_kl_loss=True))


def with_a_hole(side: str) -> dict[str, Tensor]:
    """The third response token of the first row is hidden."""
    batch = toy_batch()
    mask = batch[f"{side}attention_mask"].clone()
    mask[0, PROMPT + 2] = 0
    return batch | {f"{side}attention_mask": mask}


def test_the_token_behind_a_hole_has_no_teacher_where_rows_count_as_packed():
    batch, packed = with_a_hole("teacher_"), ForwardSettings(use_remove_padding=True)
    (values,) = run(batch=batch, forward=packed)[2].micro_batches
    (padded,) = run(batch=batch)[2].micro_batches
    for name in ("log_probs.teacher", "support.teacher"):
        behind, before = values[name][0, 3], values[name][0, :3]
        assert (behind == 0).all()
        torch.testing.assert_close(before, padded[name][0, :3])
    torch.testing.assert_close(values["log_probs.student"], padded["log_probs.student"])


def test_a_student_with_a_hole_does_not_count_as_packed():
    with pytest.raises(ValueError, match="use_remove_padding=False"):
        run(batch=with_a_hole(""), forward=ForwardSettings(use_remove_padding=True))


@pytest.mark.parametrize(
    ("mask", "hidden"),
    [([0, 1, 1, 0], False), ([1, 0, 1, 1], True), ([1, 1, 1, 1], False), ([0, 0, 0, 0], False)],
)
def test_holes_are_told_from_padding(mask, hidden):
    assert hidden_between(torch.tensor([mask])) is hidden


def test_autocast_gives_values_of_its_dtype():
    """Of the toy's parts only a product is rounded."""
    student = WithHead(0)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    config = changed(teacher_update_rate=0.0)
    report = actor_update(
        student,
        None,
        optimizer,
        toy_batch(),
        config,
        mini_batch_size=4,
        micro_batch_size=4,
        forward=ForwardSettings(torch.bfloat16),
        record=True,
    )
    (values,) = report.micro_batches
    assert values["log_probs.student"].dtype == values["importance"].dtype == torch.bfloat16
    assert values["aggregate"].dtype == torch.float32
