"""What an audit needs to know of a trainer: how to build it, and where its values are."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from sdpo.parity.adapters.base import Location
from sdpo.parity.whole_step.record import TrainerRun
from sdpo.parity.whole_step.scenario import Scenario


class TrainerAdapter(ABC):
    """Base class of trainer candidates: subclass it, and audit `FILE.py:YourAdapter`.

    `stages` are the stages that the adapter claims to show; one that a run then lacks makes the
    audit INCONCLUSIVE. `package` and `versions` name the audited distribution and the versions
    that the adapter was written for (a specifier such as `>=1.16,<2`).
    """

    name: ClassVar[str]
    kind: ClassVar[str] = "trainer"
    package: ClassVar[str] = ""
    versions: ClassVar[str] = ""
    stages: ClassVar[tuple[str, ...]] = ()
    notes: tuple[str, ...] = ()
    location: Location | None = None

    @abstractmethod
    def run(self, scenario: Scenario, folder: Path) -> TrainerRun:
        """Train through a scenario with the real trainer class and say what it did.

        Raises:
            NotCoveredError: the trainer cannot express the scenario; the message says what.
            CandidateError: the trainer failed, or a hook did not fire.
        """


class HFTrainerAdapter(TrainerAdapter):
    """A trainer derived from transformers' `Trainer`: only building it and its teacher differ."""

    @abstractmethod
    def build(
        self, scenario: Scenario, model: nn.Module, tokenizer: Any, folder: Path
    ) -> tuple[Any, Mapping[str, Any]]:
        """The trainer, and its effective settings under verl's names.

        Raises:
            NotCoveredError: the trainer has no setting for what the scenario needs.
        """

    @abstractmethod
    def teacher(self, trainer: Any) -> nn.Module | None:
        """The module whose weights the teacher uses, None before there is one."""
