"""Base classes of the adapters by which trainers are audited.

A loop of one's own subclasses `TrainerAdapter` and fills `run` (`examples/audit_my_trainer.py`). A
trainer derived from transformers' `Trainer` subclasses `HFTrainerAdapter` (`hf_trainer.py`,
`examples/audit_my_hf_trainer.py`) and fills `build` and `teacher`; most of it is seen without help:

| stage | seen in | asks of the adapter |
|---|---|---|
| `teacher_tokens` | inputs of the teacher's forward pass | `teacher` |
| `distillation_mask` | `self_distillation_mask` of a micro-batch, else a hook | – |
| `feedback`, `demonstration`, `teacher_prompt` | hooks | `observe` |
| `log_probs`, `support`, `tail`, `divergence`, `importance` | hooks | `observe` |
| `aggregate` | `compute_loss`, or a hook | `returns_unscaled_loss`, or `observe` |
| `gradient` | gradient at the student's output | – |
| `accumulate` | gradients before they are clipped | – |
| `optimizer` | weights after each step | – |
| `teacher_update` | the teacher's weights after each generation | `teacher` |
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from sdpo.parity.cases.checked_call import Location
from sdpo.parity.trainers.recording.hooks import Watch
from sdpo.parity.trainers.recording.weights import teacher_weights
from sdpo.parity.trainers.scenarios.scenario import Scenario
from sdpo.parity.trainers.scenarios.training_record import MicroBatch, TrainerRun
from sdpo.settings.config import SDPOConfig

COMMON_IMPORTS = (
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.auto.tokenization_auto",
    "transformers.trainer",
    "datasets",
    "peft",
    "trl.trainer.grpo_trainer",
)


Settings = dict[str, Any]
"""Settings by name, of verl or of a trainer."""
LossInputs = dict[str, Any]
"""What a trainer passes to `compute_loss`, by its names."""


class ScenarioRunner(Protocol):
    """What trains through scenarios: an adapter, or a pool of processes that stands for one."""

    name: str

    def run(self, scenario: Scenario, folder: Path) -> TrainerRun:
        """Train through a scenario and return what was recorded."""
        ...


class HFTrainer(Protocol):
    """What an audit uses of a trainer derived from transformers' `Trainer`; others are `Any`."""

    model: nn.Module
    accelerator: Any
    args: Any
    state: Any
    compute_loss: Callable[..., Any]
    train: Callable[..., Any]
    add_callback: Callable[..., Any]
    remove_callback: Callable[..., Any]

    def __getattr__(self, name: str) -> Any:
        """Return an attribute that only some trainers have."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute that only some trainers have."""


class TrainerAdapter(ABC):
    """Base class of trainer candidates: subclass it, and audit `FILE.py:YourAdapter`.

    To be filled in: `name`, `stages` and `run`. `run` builds the trainer on `tiny_model` and
    `handed_tokenizer`, lets it learn from the scenario's generations, and returns a `TrainerRun`:
    one `Update` for each generation, with the prompt stages and an `OptimizerStep` for each step,
    with a `MicroBatch` for each forward and backward pass. Values that are left out are not
    covered; a scenario that the trainer cannot express is refused by `NotCoveredError`.

    Attributes:
        name: what reports call the trainer.
        stages: the stages that the adapter claims to show; one that a run then lacks makes the
            audit INCONCLUSIVE.
        package: the audited distribution, if it is one.
        versions: those that the adapter was written for, a specifier such as `>=1.16,<2`.
        install: what installs the package, if that is not its name.
        policy_terms: whether the trainer has verl's entropy bonus and KL anchor; else scenarios
            with one are not covered.
    """

    name: ClassVar[str]
    kind: ClassVar[str] = "trainer"
    package: ClassVar[str] = ""
    versions: ClassVar[str] = ""
    install: ClassVar[str] = ""
    policy_terms: ClassVar[bool] = False
    stages: ClassVar[tuple[str, ...]] = ()
    imports: ClassVar[tuple[str, ...]] = ()
    """Modules that every run needs: they are imported once, before processes for runs fork."""
    loss_metrics: ClassVar[tuple[str, ...]] = ()
    """Names, beside `loss`, under which the trainer logs the loss that it optimises."""
    notes: tuple[str, ...] = ()
    location: Location | None = None
    """Where the trainer is defined; known after a run at the latest."""
    locations: Mapping[str, Location] = MappingProxyType({})
    """Where stages are computed, by stage: reports point there."""

    @abstractmethod
    def run(self, scenario: Scenario, folder: Path) -> TrainerRun:
        """Train through a scenario with the real trainer class and record what it does.

        Args:
            scenario: conversations, completions, rewards and settings.
            folder: an empty one for this run; the model lies in it.

        Raises:
            NotCoveredError: the trainer cannot express the scenario; the message says what.
            CandidateError: the trainer failed, or a hook did not fire.
        """


@dataclass(frozen=True)
class TrainerParts:
    """What a trainer is built from.

    `settings` are the scenario's with every default filled in; `arguments` suit `GRPOConfig` and
    anything that takes its names; `optimizer` is over the model's trainable weights; `dataset` has
    the conversations in the column `prompt`; each of the `rewards` leaves feedback in
    `last_feedback`, one text or None per completion.
    """

    scenario: Scenario
    settings: SDPOConfig
    model: nn.Module
    tokenizer: Any
    dataset: Any
    rewards: list[Callable[..., list[float]]]
    optimizer: torch.optim.Optimizer
    arguments: Settings
    folder: Path


class StageRecorder(Protocol):
    """The face that `observe` sees of the recorder of a run (`recorder.py`).

    Attributes:
        watch: `watch.function(module, name, seen)` adds a hook.
        trainer: the trainer that is recorded.
        micro: the micro-batch in progress, with what is known of it so far; None outside of one.
    """

    watch: Watch
    trainer: HFTrainer
    micro: MicroBatch | None

    def values(self, stages: Mapping[str, Tensor | None]) -> None:
        """Record stage values of the micro-batch in progress; outside of one they are ignored."""

    def prompts(self, stage: str, rows: Sequence[Any]) -> None:
        """Record a prompt stage of the latest generation, one value per row."""

    def prompt(self, stage: str, value: Any) -> None:
        """Record a prompt stage of the next row of the latest generation."""


class TrainerHooks(TrainerAdapter):
    """What the recorder asks of the adapter of a trainer derived from transformers' `Trainer`.

    Subclass `HFTrainerAdapter`, which adds `run`. To be filled in: `name`, `build` and `teacher`;
    `observe`, and `stages` with what it shows, where more than the defaults is to be compared.
    """

    stages: ClassVar[tuple[str, ...]] = (
        "teacher_tokens",
        "gradient",
        "accumulate",
        "optimizer",
        "teacher_update",
    )
    imports: ClassVar[tuple[str, ...]] = COMMON_IMPORTS
    returns_unscaled_loss: ClassVar[bool] = False
    """Whether `compute_loss` returns the micro-batch's loss before any scale for accumulation."""
    feedback_columns: ClassVar[tuple[str, ...]] = ()
    """Columns of the data set in which the trainer looks for feedback, if it does so at all."""
    further_inputs: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Names under which `compute_loss`, or that of the class derived from, gets the weights
    `rollout_is_weights` of another sampler's rollouts, and the `response_mask` of tools' tokens."""
    teacher_adapter: ClassVar[str] = "teacher"
    """Name of the teacher's adapter where student and teacher share a PEFT model."""

    @abstractmethod
    def build(self, parts: TrainerParts) -> tuple[Any, Mapping[str, object]]:
        """Build the trainer, and return it with its effective settings under verl's names.

        Read the settings back from the trainer's own configuration, so that a default or a rename
        that was missed shows at stage `config`.

        Raises:
            NotCoveredError: the trainer has no setting for what the scenario needs.
        """

    @abstractmethod
    def teacher(self, trainer: HFTrainer) -> nn.Module | None:
        """Return the module that answers as the teacher; the student itself if they are one."""

    def teacher_adapters(self, trainer: HFTrainer) -> tuple[str, ...]:
        """Name the adapters that are active while the teacher answers, in a shared PEFT model.

        By them its passes are told from the student's; `()` if it answers with all disabled.
        """
        return (self.teacher_adapter,)

    def observe(self, trainer: HFTrainer, recorder: StageRecorder) -> None:
        """Add hooks that show stage values: `recorder.watch.function(module, name, seen)`.

        `seen` may call `recorder.values({stage: tensor})` for the micro-batch in progress and
        `recorder.prompts(stage, rows)` or `recorder.prompt(stage, row)` for the generation.
        """

    def sources(self, trainer: HFTrainer) -> Mapping[str, object]:
        """Return functions that compute stages, by stage, for reports to point at."""
        return {}

    def teacher_weights(self, trainer: HFTrainer) -> dict[str, Tensor]:
        """Copy the teacher's weights by name; of a LoRA teacher the effective ones."""
        return teacher_weights(self.teacher(trainer), trainer.model, self.teacher_adapter)
