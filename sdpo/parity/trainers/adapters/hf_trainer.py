"""The base class of adapters of trainers derived from transformers' `Trainer`."""

from pathlib import Path

from sdpo.parity.trainers.recording.adapter_base import TrainerHooks
from sdpo.parity.trainers.recording.run_training import run_hf_trainer
from sdpo.parity.trainers.scenarios.scenario import Scenario
from sdpo.parity.trainers.scenarios.training_record import TrainerRun


class HFTrainerAdapter(TrainerHooks):
    """A trainer derived from transformers' `Trainer` that samples with `model.generate`.

    `compute_loss(model, inputs, …)` must do the forward and loss of one micro-batch, and `inputs`
    hold `completion_ids` and `completion_mask`, as in TRL. For others override `run`.
    """

    def run(self, scenario: Scenario, folder: Path) -> TrainerRun:
        """Train through a scenario with the real trainer class and say what it did."""
        return run_hf_trainer(self, scenario, folder)
