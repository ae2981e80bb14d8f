"""Values by place: what is found again, and in which order."""

from sdpo.parity.cases.stage_trace import (
    GRAD_NORM,
    NO_STAGE,
    Moment,
    Place,
    StageTrace,
    stage_of,
)


def two_steps():
    """An update of two steps, the first of two micro-batches."""
    trace = StageTrace()
    trace.put(Moment(), {"feedback": ["text"]})
    trace.put(Moment(0, 0, 0), {"log_probs.student": 1, "loss_mask": 2})
    trace.put(Moment(0, 0, 1), {"log_probs.student": 3})
    trace.put(Moment(0, 0, 1), {"w": 4}, "accumulate")
    trace.put(Moment(0, 0, 1), {GRAD_NORM: 5}, NO_STAGE)
    trace.put(Moment(0, 1, 0), {"log_probs.student": 6})
    trace.put(Moment(0, 1, 0), {"w": 7, "b": 8}, "accumulate")
    return trace


def test_a_value_is_placed_by_the_stage_that_its_name_begins_with():
    assert two_steps()[Place(0, 0, 0, "log_probs", "log_probs.student")] == 1
    assert stage_of("support.indices") == "support"
    assert stage_of("model.norm.weight") == NO_STAGE


def test_weights_are_found_by_stage_and_step():
    trace = two_steps()
    assert trace.named("accumulate", 0, 0) == {"w": 4}
    assert trace.named("accumulate", 0, 1) == {"w": 7, "b": 8}
    assert trace.named("optimizer") == {}


def test_of_an_update_the_last_step_counts():
    assert two_steps().named("accumulate", 0) == {"w": 7, "b": 8}


def test_micro_batches_hold_the_values_of_the_loss_only():
    first, second = two_steps().micro_batches(0, 0)
    assert first == {"log_probs.student": 1, "loss_mask": 2}
    assert second == {"log_probs.student": 3}


def test_what_has_no_stage_is_not_compared():
    names = {place.name for place in two_steps().compared()}
    assert names == {"feedback", "log_probs.student", "w", "b"}


def test_steps_and_moments_come_in_order():
    trace = two_steps()
    assert trace.steps() == [0, 1]
    assert trace.steps(update=1) == []
    assert list(trace.moments()) == [Moment(0, 0, 0), Moment(0, 0, 1), Moment(0, 1, 0)]


def test_places_that_a_trace_lacks_are_left_out():
    known, unknown = Place(0, 0, 0, "feedback", "feedback"), Place(9, 0, 0, "config", "alpha")
    assert two_steps().at([known, unknown]) == {known: ["text"]}
