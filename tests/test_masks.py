"""Masks of every dtype that the reference takes, also from golden data of one's own."""

import json

import pytest
import torch
from spread import slow_are
from written_goldens import write_loss

from sdpo.aggregate import LOSS_AGG_MODES
from sdpo.config import SDPOConfig
from sdpo.determinism import deterministic
from sdpo.fixtures import GoldenDataError, load_families
from sdpo.fixtures.loader import DTYPES
from sdpo.parity.audit import Request, judge
from sdpo.parity.case import LossCase
from sdpo.parity.prepared import loss_cases

TELLING = {"uint8", "uint16", "bool", "bfloat16"}
"""The others behave as one of these."""

SETTINGS = {
    "top-k with tail": {"distillation_topk": 4, "alpha": 0.5},
    "sampled": {"full_logit_distillation": False, "alpha": 1.0, "distillation_topk": None},
}


def case_with(
    mask: torch.dtype,
    loss_agg_mode: str = "token-mean",
    *,
    name: str = "mask",
    dtype: torch.dtype = torch.float32,
    signal: torch.dtype | None = None,
    **settings,
) -> LossCase:
    """Three rows of four tokens, some of them padding; with `signal`, a row without a teacher."""
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(2, 3, 4, 12, generator=generator)
    counts = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]])
    return LossCase(
        id=name,
        config=SDPOConfig(is_clip=None, loss_agg_mode=loss_agg_mode, **settings),
        student_logits=logits[0].to(dtype),
        teacher_logits=logits[1].to(dtype),
        responses=torch.randint(12, (3, 4), generator=generator),
        response_mask=counts.to(mask),
        self_distillation_mask=None if signal is None else torch.tensor([1, 0, 1]).to(signal),
    )


def audited(name: str, folder) -> dict:
    from sdpo.parity.adapters.load import load_candidate

    with deterministic():
        families = load_families(folder)
        request = Request(name, goldens=(str(folder),))
        return judge(request, load_candidate(name), families, (), lambda *_: None, isolation=False)


@pytest.mark.parametrize("mask", slow_are(set(DTYPES) - TELLING, sorted(DTYPES)))
def test_each_mask_that_the_reference_takes_passes_through_the_audit(tmp_path, mask):
    dtype = DTYPES[mask]
    cases = [
        case_with(dtype, mode, name=f"{what}-{mode}".replace(" ", "-"), **SETTINGS[what])
        for what in SETTINGS
        for mode in LOSS_AGG_MODES
    ]
    cases.append(case_with(dtype, name="signal", signal=torch.float32, distillation_topk=4))
    cases.append(case_with(dtype, name="same", signal=dtype, distillation_topk=4))
    folder = write_loss(tmp_path / "loss", cases)
    read = loss_cases(load_families(folder)[0])
    assert [case.response_mask.dtype for case in read] == [dtype] * len(cases)
    for name in ("reference", "sdpo"):
        run = audited(name, folder)
        statuses = {case["id"]: case["status"] for case in run["cases"] if case["family"] == "loss"}
        assert set(statuses) == {case.id for case in cases}
        assert set(statuses.values()) <= {"MATCH", "PASS"}, (name, statuses)


def test_a_case_is_computed_in_a_floating_dtype(tmp_path):
    folder = write_loss(tmp_path / "loss", [case_with(torch.int64, distillation_topk=4)])
    manifest = json.loads((folder / "cases.json").read_text())
    manifest["cases"][0]["config"]["dtype"] = "int64"
    (folder / "cases.json").write_text(json.dumps(manifest))
    with pytest.raises(GoldenDataError, match="int64"):
        loss_cases(load_families(folder)[0])
