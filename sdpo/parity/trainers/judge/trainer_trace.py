"""Turns the record of a trainer into the `StageTrace` that the reference's own run has too."""

from sdpo.parity.cases.stage_trace import Moment, StageTrace
from sdpo.parity.trainers.scenarios.training_record import TrainerRun


def trace_of(run: TrainerRun) -> StageTrace:
    """Put the values that a trainer shows at their places, in the order of the training."""
    trace = StageTrace()
    for update, values in enumerate(run.updates):
        trace.put(Moment(update), values.prompt)
        at = Moment(update)
        for number, step in enumerate(values.steps):
            for micro, micro_batch in enumerate(step.micro_batches):
                at = Moment(update, number, micro)
                trace.put(at, micro_batch.values)
            trace.put(at, step.gradient, "accumulate")
            trace.put(at, step.parameters, "optimizer")
        trace.put(at, values.teacher, "teacher_update")
    return trace
