"""Loss cases with masks of any dtype, and audits of golden data that hold them."""

import torch

from sdpo.fixtures import load_families
from sdpo.parity.audit.audit import judge
from sdpo.parity.audit.request import Request
from sdpo.parity.cases.loss_case import LossCase
from sdpo.parity.report.run_report import RunReport
from sdpo.settings.config import SDPOConfig
from sdpo.settings.determinism import deterministic


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


def audited(name: str, folder) -> RunReport:
    from sdpo.parity.audit.load_candidate import load_candidate

    with deterministic():
        families = load_families(folder)
        request = Request(name, goldens=(str(folder),))
        return judge(request, load_candidate(name), families, (), lambda *_: None, isolation=False)
