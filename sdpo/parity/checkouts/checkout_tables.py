"""Writes what differs between checkouts as Markdown: settings, functions and stages."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from sdpo.parity.cases.stages import NAMES
from sdpo.parity.checkouts.compare_checkouts import SeenCheckout
from sdpo.parity.checkouts.description import CheckoutDescription, FunctionResult
from sdpo.parity.checkouts.settings_of import COMPARED, VERL_DISTILLATION
from sdpo.parity.live_fork.checkout import COMMIT
from sdpo.parity.report.run_report import RunReport

ABSENT = "–"
LAYERS = {"dataclass": "dataclass", "sdpo_yaml": "`sdpo.yaml`"}

Layers = Mapping[str, Mapping[str, str]]


def markdown(recorded: Layers, seen: Sequence[SeenCheckout]) -> str:
    """All tables.

    Args:
        recorded: the settings of the recorded commit by layer.
        seen: the checkouts.
    """
    described = [checkout.description for checkout in seen]
    return "\n".join(
        [
            *(f"- {d.name}: verl {d.version}, {d.state.partition(';')[0]}" for d in described),
            "",
            "## Settings that differ",
            "",
            *settings_table(recorded, described),
            "",
            *own_distillation(described),
            "## Functions on the recorded losses",
            "",
            *functions_table(described),
            "",
            "## The sixteen stages",
            "",
            *stages_table([(c.description.name, c.audit) for c in seen if c.audit is not None]),
        ]
    )


def settings_table(recorded: Layers, described: Sequence[CheckoutDescription]) -> Iterator[str]:
    """Settings of SDPO that a checkout lacks, adds or sets otherwise."""
    having = [checkout for checkout in described if checkout.has_sdpo]
    yield from header(["layer", "setting", f"recorded {COMMIT[:8]}", *(d.name for d in having)])
    for layer in COMPARED:
        columns = [recorded[layer], *(checkout.layers[layer] for checkout in having)]
        for name in dict.fromkeys(name for column in columns for name in column):
            # the recorded layers hold what matters to SDPO; the actor has more of its own
            values = [column.get(name, ABSENT) for column in columns]
            if len(set(values)) > 1:
                yield row([LAYERS[layer], f"`{name}`", *map(cell, values)])


def own_distillation(described: Sequence[CheckoutDescription]) -> Iterator[str]:
    """The defaults of verl's own distillation, of the checkouts that have it."""
    having = [checkout for checkout in described if VERL_DISTILLATION in checkout.layers]
    if not having:
        return
    yield f"## verl's own `{VERL_DISTILLATION}`"
    yield ""
    yield from header(["setting", *(checkout.name for checkout in having)])
    columns = [checkout.layers[VERL_DISTILLATION] for checkout in having]
    for name in dict.fromkeys(name for column in columns for name in column):
        yield row([f"`{name}`", *(cell(column.get(name, ABSENT)) for column in columns)])
    yield ""


def functions_table(described: Sequence[CheckoutDescription]) -> Iterator[str]:
    """What each function gives on the recorded losses."""
    yield from header(["function", *(checkout.name for checkout in described)])
    for results in zip(*(checkout.functions for checkout in described), strict=True):
        yield row([results[0].name, *map(result_text, results)])


def result_text(result: FunctionResult) -> str:
    """One function of one checkout, in a few words."""
    if not result.cases:
        return "no such function"
    if result.problem:
        return f"raises {cell(result.problem)}"
    text = f"{result.equal} of {result.cases} bit-equal"
    if result.worst:
        text += f", up to {result.largest:.2g} of the value ({result.worst})"
    if result.one_side_finite:
        text += f", {result.one_side_finite} finite on one side alone"
    return text


def stages_table(audits: Sequence[tuple[str, RunReport]]) -> Iterator[str]:
    """Status of each stage, and how many cases depart there first."""
    yield from header(["stage", *(name for name, _ in audits)])
    stages = [{stage.name: stage for stage in audit.stages} for _, audit in audits]
    for name in NAMES:
        cells = []
        for of_audit in stages:
            stage = of_audit[name]
            plural = "s" if stage.first_in > 1 else ""
            first = f", first in {stage.first_in} case{plural}" if stage.first_in else ""
            cells.append(f"{stage.status}{first}")
        yield row([f"`{name}`", *cells])


def header(names: Sequence[str]) -> list[str]:
    """The first two lines of a table."""
    return [row(names), row(["---"] * len(names))]


def row(cells: Iterable[str]) -> str:
    """A line of a table."""
    return f"| {' | '.join(cells)} |"


def cell(text: str) -> str:
    """A value as code, on one line and without a bar that would end the cell."""
    return text if text == ABSENT else f"`{text.replace('|', chr(92) + '|')}`"
