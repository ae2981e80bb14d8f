"""The parity harness: cases, truth, comparison, explanation, reports, audits."""

# Public names for authors of adapters (docs/trainer_adapters.md) and readers of reports
# (docs/audit.md). `sdpo.audit` runs an audit: `audit` is a folder here.

from typing import TYPE_CHECKING

from sdpo.runtime.lazy_names import lazy_names

if TYPE_CHECKING:
    from sdpo.parity.candidates.wrapper_text import fill_in
    from sdpo.parity.cases.checked_call import CandidateError, NotCoveredError
    from sdpo.parity.cases.stages import NAMES as STAGES
    from sdpo.parity.compare.statuses import Status, Verdict
    from sdpo.parity.report.run_report import Report, ReportError, RunReport, read_report
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
    "Report",
    "ReportError",
    "Rollout",
    "RunReport",
    "Scenario",
    "StageRecorder",
    "Status",
    "TrainerAdapter",
    "TrainerParts",
    "TrainerRun",
    "Update",
    "Verdict",
    "attended_tokens",
    "fill_in",
    "gradients_of",
    "handed_tokenizer",
    "read_report",
    "scripted_batch",
    "tiny_model",
    "weights_of",
]

_HOMES = {
    "STAGES": "sdpo.parity.cases.stages:NAMES",
    "CandidateError": "sdpo.parity.cases.checked_call",
    "Generation": "sdpo.parity.trainers.scenarios.scenario",
    "HFTrainerAdapter": "sdpo.parity.trainers.recording.hf_trainer",
    "MicroBatch": "sdpo.parity.trainers.scenarios.training_record",
    "NotCoveredError": "sdpo.parity.cases.checked_call",
    "OptimizerStep": "sdpo.parity.trainers.scenarios.training_record",
    "Report": "sdpo.parity.report.run_report",
    "ReportError": "sdpo.parity.report.run_report",
    "Rollout": "sdpo.parity.trainers.scenarios.scenario",
    "RunReport": "sdpo.parity.report.run_report",
    "Scenario": "sdpo.parity.trainers.scenarios.scenario",
    "StageRecorder": "sdpo.parity.trainers.recording.adapter_base",
    "Status": "sdpo.parity.compare.statuses",
    "TrainerAdapter": "sdpo.parity.trainers.recording.adapter_base",
    "TrainerParts": "sdpo.parity.trainers.recording.adapter_base",
    "TrainerRun": "sdpo.parity.trainers.scenarios.training_record",
    "Update": "sdpo.parity.trainers.scenarios.training_record",
    "Verdict": "sdpo.parity.compare.statuses",
    "attended_tokens": "sdpo.parity.trainers.recording.token_layout",
    "fill_in": "sdpo.parity.candidates.wrapper_text",
    "gradients_of": "sdpo.parity.trainers.recording.weights",
    "handed_tokenizer": "sdpo.parity.trainers.scenarios.tiny_model",
    "read_report": "sdpo.parity.report.run_report",
    "scripted_batch": "sdpo.parity.trainers.recording.scripted_world",
    "tiny_model": "sdpo.parity.trainers.scenarios.tiny_model",
    "weights_of": "sdpo.parity.trainers.recording.weights",
}

__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
