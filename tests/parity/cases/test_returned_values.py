"""What a loss or a stage function may return by mistake: each ends in ERROR, with its reason."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sdpo.parity.audit.audit import audit
from sdpo.parity.audit.request import Request
from sdpo.parity.render.text import first_line
from tests.helpers import candidates
from tests.helpers.candidates import correct, first
from tests.helpers.golden_subset import SOME

HERE = Path(__file__)

pytestmark = pytest.mark.usefixtures("relations_once")

ODD = {
    "number": (lambda loss: loss.item(), "returned float, no tensor"),
    "whole_number": (lambda loss: 1, "returned int, no tensor"),
    "nothing": (lambda loss: None, "returned NoneType, no tensor"),
    "text": (lambda loss: "0.5", "returned str, no tensor"),
    "numpy_array": (lambda loss: loss.detach().numpy(), "returned ndarray, no tensor"),
    "numpy_scalar": (lambda loss: np.float64(loss.item()), "returned float64, no tensor"),
    "mapping": (lambda loss: {"loss": loss}, "returned dict, no tensor"),
    "list_of_tensors": (lambda loss: [loss, loss], "returned list, no tensor"),
    "empty_tuple": (lambda loss: (), "returned tuple, no tensor"),
    "number_and_metrics": (
        lambda loss: (loss.item(), {"metric": 1.0}),
        "returned a tuple that starts with float, no tensor",
    ),
    "truth_value": (lambda loss: True, "returned bool, no tensor"),
    "whole_numbers": (lambda loss: loss.detach().long(), "returned dtype torch.int64; expected"),
    "complex_number": (lambda loss: loss.to(torch.complex64), "of dtype torch.complex64 where"),
    "elsewhere": (lambda loss: loss.to("meta"), "a tensor on device meta, no numbers on cpu"),
    "sparse": (lambda loss: loss.detach()[None].to_sparse(), "of layout torch.sparse_coo where"),
    "one_element": (lambda loss: loss[None], "returned shape (1,); expected a scalar"),
}
"""What is made of a correct loss, and what the report says of it."""


def returning(kind):
    def loss(*args, **kwargs):
        return ODD[kind][0](first(correct(*args, **kwargs)))

    return loss


for _kind in ODD:
    globals()[_kind] = returning(_kind)


@pytest.mark.parametrize("kind", ODD)
def test_a_loss_that_returns_no_scalar_tensor_is_an_error_with_that_reason(kind, goldens):
    run = audit(Request(f"{HERE}:{kind}", goldens=(str(goldens),)))
    assert (run.verdict, run.exit_code) == ("ERROR", 2)
    assert ODD[kind][1] in run.message
    assert len(run.cases) == len(SOME)
    assert (run.first_stage, run.first_stage_inferred) == ("aggregate", False)
    assert "introduced=" not in first_line(run)
    assert not run.explained_by


def test_a_right_loss_without_a_graph_still_diverges_at_the_gradient(goldens):
    run = audit(Request(f"{candidates.__file__}:detached", goldens=(str(goldens),)))
    assert (run.verdict, run.first_stage) == ("DIVERGENT", "gradient")


STAGE = {
    "divergence": "def divergence(student, teacher, alpha): return {value}\n",
    "support": (
        "def support(student_logits, teacher_logits, distillation_topk, temperature):\n"
        "    k = min(distillation_topk or 10**9, student_logits.shape[-1])\n"
        "    i = (student_logits / temperature).topk(k).indices\n"
        "    s = (student_logits / temperature).log_softmax(-1).gather(-1, i)\n"
        "    t = (teacher_logits / temperature).log_softmax(-1).gather(-1, i)\n"
        "    return {value}\n"
    ),
}


@pytest.mark.parametrize(
    ("stage", "value", "words"),
    [
        ("divergence", "0.5", "returned float, no tensor"),
        ("divergence", "(student - teacher).sum(-1).to('meta')", "on device meta, no numbers"),
        ("divergence", "(student - teacher).sum(-1).to_sparse()", "of layout torch.sparse_coo"),
        ("divergence", "(student - teacher).sum(-1) + 1j", "where real numbers are expected"),
        ("support", "(i.double(), s, t)", "indices of dtype torch.float64; expected whole"),
        ("support", "(i + 1000000, s, t)", "indices outside of 0 to"),
        ("support", "(i[0], s, t)", "expected (2, 6, K)"),
        ("support", "(None, s, t)", "returned no indices; distillation_topk needs them"),
        ("support", "(i, s, None)", "returned NoneType, no tensor"),
    ],
)
def test_a_stage_function_that_returns_something_else_is_an_error(
    stage, value, words, tmp_path, goldens
):
    (tmp_path / "port.py").write_text(STAGE[stage].format(value=value))
    run = audit(Request(str(tmp_path / "port.py"), goldens=(str(goldens),)))
    assert (run.verdict, run.first_stage) == ("ERROR", stage)
    assert words in run.message


def test_the_whole_vocabulary_may_be_given_in_any_order(tmp_path, goldens):
    (tmp_path / "port.py").write_text(STAGE["support"].format(value="(i, s, t)"))
    run = audit(Request(str(tmp_path / "port.py"), goldens=(str(goldens),)))
    assert run.verdict == "PASS", run.message


def test_a_prompt_function_that_returns_nothing_is_an_error(tmp_path):
    (tmp_path / "port.py").write_text(
        "def feedback(feedback_raw, n_rows): return None\n"
        "def distillation_mask(demonstrations, feedbacks):\n"
        "    import torch\n"
        "    return torch.ones(len(feedbacks), device='meta')\n"
    )
    run = audit(Request(str(tmp_path / "port.py")))
    assert (run.verdict, run.first_stage) == ("ERROR", "feedback")
    statuses = {row.name: row.status for row in run.stages}
    assert statuses["distillation_mask"] == "ERROR"


def test_numbers_of_another_machine_are_accepted_where_the_inputs_are():
    from sdpo.parity.cases.returned_values import no_scalar

    loss = torch.zeros((), device="meta", requires_grad=True)
    assert not no_scalar(loss, torch.device("meta"))
