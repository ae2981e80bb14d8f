"""Masks whose dtype cannot hold the number of tokens: 301 in bfloat16 are 300 in the reference."""

import json
from pathlib import Path

import pytest
import torch

from sdpo.parity.audit.run_loss_cases import judge_loss_case
from sdpo.parity.candidates.loss_functions import FromLogits
from sdpo.parity.cases.loss_case import LossCase
from sdpo.parity.compare.evaluated_case import evaluate_case
from sdpo.parity.compare.statuses import Status
from sdpo.parity.faults.evaluate_fault import loss_from_logits
from sdpo.parity.faults.reference_parts import LossState, aggregate
from sdpo.reference.loss import agg_loss
from sdpo.settings.config import SDPOConfig
from sdpo.settings.determinism import deterministic
from tests.helpers.masked_cases import audited
from tests.helpers.written_goldens import write_loss

TOKENS, WIDTH = 301, 310
NOTE = "counts 301 tokens, of which the reference's bfloat16 mask makes 300"


def case_of(
    loss_agg_mode: str = "token-mean",
    dtype: torch.dtype = torch.float32,
    signal: torch.dtype | None = None,
) -> LossCase:
    """One row of 301 tokens and padding; the mask, or with `signal` the row's, is bfloat16."""
    generator = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, 1, WIDTH, 8, generator=generator).to(dtype)
    mask = (torch.arange(WIDTH) < TOKENS)[None]
    return LossCase(
        id=f"count-{loss_agg_mode}",
        config=SDPOConfig(distillation_topk=4, is_clip=None, loss_agg_mode=loss_agg_mode),
        student_logits=student,
        teacher_logits=teacher,
        responses=torch.zeros(1, WIDTH, dtype=torch.int64),
        response_mask=mask.to(torch.int64 if signal else torch.bfloat16),
        self_distillation_mask=torch.ones(1, dtype=signal) if signal else None,
    )


def exactly(state: LossState) -> torch.Tensor:
    """Tokens counted in float32."""
    mask = state.loss_mask.float()
    return agg_loss(state.token_losses, mask, state.config.loss_agg_mode, mask.sum().clamp(min=1.0))


def divided_by(count: float):
    """The sum over tokens ÷ a number."""
    return lambda state: (state.token_losses * state.loss_mask).sum() / count


def all_places(state: LossState) -> torch.Tensor:
    """Padding is counted."""
    return divided_by(state.loss_mask.numel())(state)


def loss_alone_exact(state: LossState) -> torch.Tensor:
    """The loss counts exactly, its gradient as the reference does."""
    rounded = aggregate(state)
    return rounded + (exactly(state) - rounded).detach()


def result_of(case: LossCase, part):
    with deterministic():
        return judge_loss_case(FromLogits("loss", loss_from_logits({"aggregate": part})), case)


CASES = {
    "token-mean": case_of(),
    "seq-mean-token-mean": case_of("seq-mean-token-mean"),
    "mask of rows": case_of(signal=torch.bfloat16),
    "in bfloat16": case_of(dtype=torch.bfloat16),
}


@pytest.mark.parametrize("name", CASES)
def test_an_exact_count_is_right_and_so_is_the_references(name):
    for part in (exactly, aggregate):
        assert result_of(CASES[name], part).status in (Status.MATCH, Status.PASS), part.__name__
    reference = float(evaluate_case(CASES["token-mean"]).reference["aggregate"])
    exact = float(evaluate_case(CASES["token-mean"]).truth.values["aggregate"])
    assert abs(exact / reference - 300 / 301) < 1e-5


def test_the_report_says_what_it_is():
    notes = {c.stage: c.note for c in result_of(CASES["token-mean"], exactly).comparisons}
    assert notes == {"aggregate": NOTE, "gradient": NOTE}
    assert not any(c.note for c in result_of(CASES["token-mean"], aggregate).comparisons)


@pytest.mark.parametrize(
    "part", [all_places, loss_alone_exact, divided_by(302), divided_by(299), divided_by(256)]
)
def test_any_other_count_is_wrong(part):
    assert result_of(CASES["token-mean"], part).status == Status.DIVERGENT


def test_twice_the_count_is_wrong_in_half_precision_too():
    result = result_of(CASES["in bfloat16"], divided_by(2 * TOKENS))
    assert result.status == Status.DIVERGENT


LOSSES = """
from sdpo.loss.self_distillation import self_distillation_loss


def exact(student_logits, teacher_logits, responses, response_mask, *, config, **optional):
    given = student_logits, teacher_logits, responses, response_mask.float()
    return self_distillation_loss(*given, config=config, **optional)


def padding(student_logits, teacher_logits, responses, response_mask, *, config, **optional):
    loss = exact(student_logits, teacher_logits, responses, response_mask, config=config)
    return loss * response_mask.float().sum() / response_mask.numel()
"""


def test_golden_data_of_such_masks_accuse_nobody_who_counts_right(tmp_path):
    folder = write_loss(tmp_path / "loss", [CASES["token-mean"], CASES["seq-mean-token-mean"]])
    assert "bfloat16" in json.dumps(json.loads((folder / "cases.json").read_text()))
    (tmp_path / "losses.py").write_text(LOSSES)
    named = {name: f"{tmp_path / 'losses.py'}:{name}" for name in ("exact", "padding")}
    statuses = {}
    for name in ("reference", "sdpo", *named):
        cases = audited(named.get(name, name), folder).cases
        statuses[name] = {case.status for case in cases if case.family == "loss"}
    assert statuses["reference"] == {Status.MATCH}
    assert statuses["sdpo"] <= {Status.MATCH, Status.PASS}
    assert statuses["exact"] == {Status.PASS}
    assert statuses["padding"] == {Status.DIVERGENT}


def test_the_traps_that_the_references_page_names_are_there():
    page = (Path(__file__).parents[3] / "reference" / "README.md").read_text()
    code = page.split("```python\n")[1].split("```")[0]
    known: dict = {}
    shown = 0
    for line in code.splitlines():
        statement, _, said = (part.strip() for part in line.partition("#"))
        if not said:
            exec(statement, known)
            continue
        name, _, expression = statement.rpartition(" = ")
        value = eval(expression, known)
        known |= {name: value} if name else {}
        expected = torch.tensor(eval(said, {"inf": float("inf"), "nan": float("nan")}))
        found = torch.as_tensor(value).double()
        assert torch.allclose(found, expected.double(), atol=5e-5, equal_nan=True), line
        shown += 1
    assert shown == 6
