"""Which stages the given golden data can show, whoever the candidate is.

A stage that a candidate claims is required only where the golden data hold something for it: with
loss cases alone nobody can show a teacher prompt, with cases of the whole vocabulary nobody a tail.
What they hold and the candidate did not show stays required.
"""

from collections.abc import Iterable, Iterator, Sequence

from sdpo.fixtures import GoldenFamily
from sdpo.parity.cases.loss_case import loss_cases
from sdpo.parity.cases.stages import PROMPT_STAGES, STAGES
from sdpo.parity.compare.evaluated_case import evaluate_case
from sdpo.parity.compare.loss_stages import compare_loss
from sdpo.parity.compare.statuses import Status
from sdpo.parity.compare.verdict import CaseResult
from sdpo.parity.recorded.golden_updates import recorded_trace
from sdpo.parity.report.report_rows import CaseRow


def beyond_goldens(
    claims: Sequence[str], results: Iterable[CaseResult], families: Sequence[GoldenFamily]
) -> tuple[str, ...]:
    """Stages that a candidate claims, did not show, and could not have shown on this golden data.

    Args:
        claims: the stages that the candidate exposes.
        results: what became of the cases.
        families: the golden data.
    """
    shown = {
        c.stage for result in results for c in result.comparisons if c.status != Status.NOT_COVERED
    }
    missing = {stage for stage in claims if stage not in shown}
    for family in families:
        for held in _held_by(family):
            missing -= held
            if not missing:
                return ()
    return tuple(stage for stage in claims if stage in missing)


def _held_by(family: GoldenFamily) -> Iterator[set[str]]:
    """The stages that each case of a family has a value of, by the reference itself."""
    if family.name == "reprompt":
        yield {"config"}  # compared beside the prompts
        for golden in family:
            yield set() if golden.entry["outputs"]["returns_none"] else set(PROMPT_STAGES)
    elif family.name == "update":
        for golden in family:
            recorded = recorded_trace(golden, golden.tensors())
            yield {"accumulate"} | {place.stage for place in recorded if place.stage}
    else:
        for case in loss_cases(family):
            evaluated = evaluate_case(case)
            own = compare_loss(evaluated, evaluated.reference)
            yield {
                comparison.stage for comparison in own if comparison.status != Status.NOT_COVERED
            }


def beyond_families(claims: Sequence[str], cases: Iterable[CaseRow]) -> tuple[str, ...]:
    """The same from a report that does not say it: stages of families without a case."""
    families = {case.family for case in cases}
    whole = "trainer" in families
    return tuple(s for s in claims if not (whole or STAGES[s].family in families))


def said(beyond: Sequence[str]) -> list[str]:
    """The note on stages that are not required; none without any."""
    if not beyond:
        return []
    return [f"not required, as the golden data hold nothing for it: {', '.join(beyond)}"]
