"""From a name to a candidate, by what the name leads to."""

import sys

import pytest

from sdpo.parity.audit.load_candidate import find, load_candidate, packaged_bases
from sdpo.parity.candidates.implementations import Own
from sdpo.parity.candidates.log_prob_functions import FromLogProbs
from sdpo.parity.candidates.loss_functions import FromLogits
from sdpo.parity.candidates.stage_functions import StageFunctions
from sdpo.parity.cases.checked_call import CandidateError

SOURCE = """
def loss(student_logits, teacher_logits, responses, response_mask):
    return (student_logits - teacher_logits).sum()

def loss_of_log_probs(student_log_probs, teacher_log_probs):
    return (student_log_probs - teacher_log_probs).sum()

class Stages:
    def divergence(self, student, teacher):
        return student - teacher

number = 3
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    """A file of candidates; importing it leaves no trace behind."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "loaded_by_a_test", None)
    path = tmp_path / "loaded_by_a_test.py"
    path.write_text(SOURCE, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("attribute", "kind"),
    [("loss", FromLogits), ("loss_of_log_probs", FromLogProbs), ("Stages", StageFunctions)],
)
def test_an_attribute_is_wrapped_by_what_it_looks_like(file, attribute, kind):
    assert type(load_candidate(f"{file}:{attribute}")) is kind


def test_a_built_in_name_needs_no_file():
    candidate = load_candidate("sdpo")
    assert isinstance(candidate, Own)
    assert packaged_bases(candidate) == ()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("{file}:absent", r"has no attribute 'absent'; it has \['loss'"),
        ("{file}:number", "int is no candidate"),
        ("{file}", r"which function is the loss\? Give one of .*:loss, .*:loss_of_log_probs"),
    ],
)
def test_what_is_no_candidate_is_refused_with_the_fix(file, name, message):
    with pytest.raises(CandidateError, match=message):
        load_candidate(name.format(file=file))


def test_an_attribute_of_an_attribute_is_reached(file):
    assert find(f"{file}:Stages.divergence").__name__ == "divergence"


def test_colons_as_pytest_writes_them_are_taken(file):
    assert type(load_candidate(f"{file}::loss")) is FromLogits


def test_a_file_that_defines_one_loss_needs_no_attribute(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "of_one_loss", None)
    path = tmp_path / "of_one_loss.py"
    # what a file imports is not what it defines, stage functions included
    path.write_text(
        "from sdpo.loss.divergence import divergence\n"
        "def helper(x):\n    return x\n"
        "def my_loss(student_logits, teacher_logits, responses, response_mask):\n"
        "    return helper(student_logits).sum()\n",
        encoding="utf-8",
    )
    candidate = load_candidate(str(path))
    assert isinstance(candidate, FromLogits)
    assert candidate.function.__name__ == "my_loss"


def test_a_file_that_imports_from_its_package_is_imported_as_a_part_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = tmp_path / "rl_kit" / "losses"
    folder.mkdir(parents=True)
    for package in (folder, folder.parent):
        (package / "__init__.py").touch()
    (folder / "parts.py").write_text("FACTOR = 3\n", encoding="utf-8")
    (folder / "distill.py").write_text(
        "from .parts import FACTOR\n"
        "def loss(student_logits, teacher_logits, responses, response_mask):\n"
        "    return FACTOR * student_logits.sum()\n",
        encoding="utf-8",
    )
    candidate = load_candidate(f"{folder / 'distill.py'}:loss")
    assert isinstance(candidate, FromLogits)
    assert candidate.function.__module__ == "rl_kit.losses.distill"
    for name in [name for name in sys.modules if name.startswith("rl_kit")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("arguments", ["*args, **kwargs", "*args, config"])
def test_a_function_of_any_arguments_is_given_the_protocols(tmp_path, monkeypatch, arguments):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "of_any_arguments", None)
    path = tmp_path / "of_any_arguments.py"
    path.write_text(f"def loss({arguments}):\n    return 0.0\n", encoding="utf-8")
    candidate = load_candidate(f"{path}:loss")
    assert isinstance(candidate, FromLogits)
    assert candidate.takes("config")
