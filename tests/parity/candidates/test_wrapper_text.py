"""The wrapper that `sdpo init` writes audits at once where everything was told."""

import sys

import pytest

from sdpo.parity.audit.load_candidate import find, load_candidate
from sdpo.parity.audit.run_loss_cases import judge_loss_case
from sdpo.parity.candidates.loss_functions import FromLogits
from sdpo.parity.candidates.wrapper_text import wrapper_text
from sdpo.parity.cases.checked_call import CandidateError
from sdpo.parity.compare.statuses import Status
from sdpo.parity.relations.transformed_cases import generated
from tests.helpers import strange_losses

CASE = generated("plain", 1, distillation_topk=None, is_clip=None, alpha=0.0)


def written(tmp_path, name):
    """A wrapper beside a file that defines the loss."""
    source = tmp_path / f"port_{name}.py"
    source.write_text(
        f"import sys\nsys.path.insert(0, {sys.path[0]!r})\n"
        f"from tests.helpers.strange_losses import {name}\n",
        encoding="utf-8",
    )
    file = tmp_path / f"audit_{name}.py"
    text = wrapper_text(f"{source}:{name}", getattr(strange_losses, name))
    file.write_text(text, encoding="utf-8")
    return file, text


@pytest.mark.parametrize("name", ["renamed", "with_labels", "from_hidden_states"])
def test_a_wrapper_without_open_marks_is_judged(tmp_path, name):
    file, text = written(tmp_path, name)
    assert "fill_in" not in text
    candidate = load_candidate(f"{file}:loss")
    assert isinstance(candidate, FromLogits)
    assert judge_loss_case(candidate, CASE).status in (Status.MATCH, Status.PASS)


def test_an_open_mark_is_refused_in_one_line(tmp_path):
    file, text = written(tmp_path, "unknown")
    assert text.count("fill_in(") == 1
    assert "# each open one is among: student_logits," in text
    candidate = load_candidate(f"{file}:loss")
    assert isinstance(candidate, FromLogits)
    with pytest.raises(CandidateError, match="argument 'gizmo' is not filled in yet"):
        candidate.trace(CASE)


def test_it_is_a_screen_long_and_says_how_to_run_it(tmp_path):
    _, text = written(tmp_path, "unknown")
    assert len(text.splitlines()) < 22
    assert "sdpo audit audit_unknown.py:loss" in text
    compile(text, "audit_unknown.py", "exec")
    assert callable(find(f"{strange_losses.__file__}::renamed"))
