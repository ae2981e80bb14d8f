"""Hooks that record what a trainer does, and what a user's adapter derives from."""

from sdpo.parity.cases.checked_call import CandidateError, NotCoveredError
from sdpo.parity.cases.stages import NAMES as STAGES
from sdpo.parity.trainers.recording.adapter_base import (
    StageRecorder,
    TrainerAdapter,
    TrainerParts,
)
from sdpo.parity.trainers.recording.hf_trainer import HFTrainerAdapter
from sdpo.parity.trainers.recording.scripted_world import scripted_batch
from sdpo.parity.trainers.recording.token_layout import attended_tokens
from sdpo.parity.trainers.recording.weights import gradients_of, weights_of
from sdpo.parity.trainers.scenarios.scenario import Generation, Rollout, Scenario
from sdpo.parity.trainers.scenarios.tiny_model import handed_tokenizer, tiny_model
from sdpo.parity.trainers.scenarios.training_record import (
    MicroBatch,
    OptimizerStep,
    TrainerRun,
    Update,
)

__all__ = [
    "STAGES",
    "CandidateError",
    "Generation",
    "HFTrainerAdapter",
    "MicroBatch",
    "NotCoveredError",
    "OptimizerStep",
    "Rollout",
    "Scenario",
    "StageRecorder",
    "TrainerAdapter",
    "TrainerParts",
    "TrainerRun",
    "Update",
    "attended_tokens",
    "gradients_of",
    "handed_tokenizer",
    "scripted_batch",
    "tiny_model",
    "weights_of",
]
