"""Where the reference builds no teacher prompt, building none is right, and building one is not."""

from typing import Any

import pytest

from sdpo.fixtures import GoldenFamily, packaged_family
from sdpo.parity.candidates.implementations import Own, Transcription
from sdpo.parity.cases.checked_call import CandidateError
from sdpo.parity.cases.stages import PROMPT_STAGES
from sdpo.parity.compare.statuses import Status
from sdpo.parity.recorded.teacher_prompts import run_reprompt_family

pytest.importorskip("transformers")

OTHER_LOSS_MODE = "P-R058"


class Builds(Own):
    """Builds a prompt whatever the loss mode is."""

    def prompt_record(self, golden: Any, tensors: Any, tokenizer: Any) -> Any:
        return {"teacher_prompt": []}


class BuildsNone(Own):
    """Builds none, also where there has to be one."""

    def prompt_record(self, golden: Any, tensors: Any, tokenizer: Any) -> Any:
        return None


class Raises(Own):
    def prompt_record(self, golden: Any, tensors: Any, tokenizer: Any) -> Any:
        raise CandidateError("teacher_prompt", "there is no loss mode")


class Functions:
    """Functions of stages, which are not told the loss mode."""

    owner = None


def status(candidate: Any, case_id: str = OTHER_LOSS_MODE) -> Status:
    family = packaged_family("reprompt")
    manifest = {**family.manifest, "cases": [family.case(case_id).entry]}
    few = GoldenFamily(family.name, family.folder, manifest)
    (result,) = run_reprompt_family(candidate, PROMPT_STAGES, few, lambda *_: None)
    return result.status


@pytest.mark.parametrize(
    ("candidate", "expected"),
    [
        (Own(), Status.MATCH),
        (Transcription(), Status.MATCH),
        (Builds(), Status.DIVERGENT),
        (Raises(), Status.ERROR),
        (Functions(), Status.NOT_COVERED),
    ],
)
def test_in_another_loss_mode_none_is_built(candidate, expected):
    assert status(candidate) == expected


def test_none_where_there_has_to_be_one_is_an_error():
    assert status(BuildsNone(), "P-R003") == Status.ERROR
