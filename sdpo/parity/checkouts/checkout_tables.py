"""Writes what differs between checkouts as Markdown: settings, functions and stages."""

from collections.abc import Mapping, Sequence

from sdpo.parity.cases.stages import NAMES
from sdpo.parity.checkouts.compare_checkouts import SeenCheckout
from sdpo.parity.checkouts.description import CheckoutDescription, FunctionResult
from sdpo.parity.checkouts.settings_of import COMPARED, VERL_DISTILLATION
from sdpo.parity.live_fork.checkout import COMMIT
from sdpo.parity.report.report_rows import StageRow
from sdpo.parity.report.run_report import RunReport
from sdpo.runtime.markdown_table import markdown_table

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


def settings_table(recorded: Layers, described: Sequence[CheckoutDescription]) -> list[str]:
    """Settings of SDPO that a checkout lacks, adds or sets otherwise."""
    having, rows = [checkout for checkout in described if checkout.has_sdpo], []
    for layer in COMPARED:
        columns = [recorded[layer], *(checkout.layers[layer] for checkout in having)]
        for name in dict.fromkeys(name for column in columns for name in column):
            # the recorded layers hold what matters to SDPO; the actor has more of its own
            values = [column.get(name, ABSENT) for column in columns]
            if len(set(values)) > 1:
                rows.append([LAYERS[layer], f"`{name}`", *map(cell, values)])
    return table(["layer", "setting", f"recorded {COMMIT[:8]}", *(d.name for d in having)], rows)


def own_distillation(described: Sequence[CheckoutDescription]) -> list[str]:
    """The defaults of verl's own distillation, of the checkouts that have it."""
    having = [checkout for checkout in described if VERL_DISTILLATION in checkout.layers]
    if not having:
        return []
    columns = [checkout.layers[VERL_DISTILLATION] for checkout in having]
    rows = [
        [f"`{name}`", *(cell(column.get(name, ABSENT)) for column in columns)]
        for name in dict.fromkeys(name for column in columns for name in column)
    ]
    head = ["setting", *(checkout.name for checkout in having)]
    return [f"## verl's own `{VERL_DISTILLATION}`", "", *table(head, rows), ""]


def functions_table(described: Sequence[CheckoutDescription]) -> list[str]:
    """What each function gives on the recorded losses."""
    results = zip(*(checkout.functions for checkout in described), strict=True)
    rows = [[of_all[0].name, *map(result_text, of_all)] for of_all in results]
    return table(["function", *(checkout.name for checkout in described)], rows)


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


def stages_table(audits: Sequence[tuple[str, RunReport]]) -> list[str]:
    """Status of each stage, and how many cases depart there first."""
    stages = [{stage.name: stage for stage in audit.stages} for _, audit in audits]
    rows = [[f"`{name}`", *(stage_text(of_audit[name]) for of_audit in stages)] for name in NAMES]
    return table(["stage", *(name for name, _ in audits)], rows)


def stage_text(stage: StageRow) -> str:
    """One stage of one checkout, in a few words."""
    plural = "s" if stage.first_in > 1 else ""
    first = f", first in {stage.first_in} case{plural}" if stage.first_in else ""
    return f"{stage.status}{first}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table of texts."""
    return markdown_table(head, rows, left=len(head)).splitlines()


def cell(text: str) -> str:
    """A value as code, on one line and without a bar that would end the cell."""
    return text if text == ABSENT else f"`{text.replace('|', chr(92) + '|')}`"
