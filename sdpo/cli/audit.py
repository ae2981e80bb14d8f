"""`sdpo audit`, `regate` and `init`: compare with the reference, judge again, wrap a loss."""

from pathlib import Path
from typing import Annotated

import typer

from sdpo.runtime.time_limit import TIMEOUT

Stages = Annotated[str, typer.Option(help="Only these stages, separated by commas.", metavar="A,B")]
Require = Annotated[
    str,
    typer.Option(
        help="Stages without which the verdict is INCONCLUSIVE, beside those the candidate claims.",
        metavar="A,B",
    ),
]
Coverage = Annotated[
    int,
    typer.Option(min=0, max=16, help="INCONCLUSIVE if fewer stages are covered.", metavar="N"),
]
MinCases = Annotated[
    int,
    typer.Option(
        "--min-cases", min=0, help="INCONCLUSIVE if fewer cases are compared.", metavar="N"
    ),
]
Declared = Annotated[
    list[Path] | None,
    typer.Option(
        help="File of declared deviations, or `trl` or `sdpo-rl` for the packaged ledger of that "
        "name, in place of the packaged ones; repeatable (format: docs/audit.md)."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Quiet = Annotated[bool, typer.Option(help="Print one line for each candidate.")]


def _names(text: str) -> list[str]:
    """The names in a list with commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _print_schema(wanted: bool) -> None:
    """Print the JSON Schema of reports and end, if wanted."""
    if wanted:
        from sdpo.parity.report.run_report import report_schema

        print(report_schema(), end="")
        raise typer.Exit


def audit(
    candidates: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CANDIDATE]...",
            help="What to audit: `sdpo` (our implementation, the default); `reference` (the "
            "transcription, against the recording); `verl` (an importable checkout of the fork); "
            "the trainers `trl`, `sdpo-rl` and `sdpo-trainer` (ours); `FILE.py:attr` or "
            "`pkg.mod:attr` (a loss function from logits or from log-probs, a module or object "
            "with functions named as the stages, or an adapter of a trainer).",
        ),
    ] = None,
    stages: Stages = "",
    goldens: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of golden data in place of the packaged one; repeatable."),
    ] = None,
    declared: Declared = None,
    require: Require = "",
    coverage: Coverage = 0,
    min_cases: MinCases = 20,
    timeout: Annotated[
        float,
        typer.Option(
            min=0, help="Longest time for one call of a loss; 0 for none.", metavar="SECONDS"
        ),
    ] = TIMEOUT,
    seed: Annotated[
        int, typer.Option(min=0, help="Of the cases that are generated between the recorded ones.")
    ] = 0,
    explore: Annotated[
        float,
        typer.Option(
            min=0,
            help="Generate further cases at random for so long, and shrink what is found.",
            metavar="SECONDS",
        ),
    ] = 0.0,
    out: Annotated[Path, typer.Option(help="Folder of the reports.")] = Path("reports/audit"),
    history: Annotated[
        Path | None,
        typer.Option(help="Append one line for each run to this file, for `sdpo trend`."),
    ] = None,
    write_ledger: Annotated[
        Path | None,
        typer.Option(
            help="Write a draft of declared deviations with measured sizes; its reasons are left "
            "to you, and refused while empty.",
        ),
    ] = None,
    bundles: Annotated[
        int,
        typer.Option(
            min=0,
            help="Failing cases of a loss function or trainer to shrink and pack for "
            "`sdpo replay`; the smallest inputs come first.",
        ),
    ] = 3,
    json_: Json = False,
    quiet: Quiet = False,
    schema: Annotated[
        bool,
        typer.Option(
            "--schema",
            help="Print the JSON Schema of the report and end.",
            callback=_print_schema,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Compare candidates with the reference, stage by stage, and write the reports.

    Without an argument our own implementation is audited against the packaged golden data: the
    proof behind this project. Exit code: 0 PASS or DECLARED, 1 DIVERGENT, 2 ERROR or wrong usage,
    3 INCONCLUSIVE.

    Example: sdpo audit my_losses.py:sdpo_loss
    """
    from sdpo.parity.audit.launch import Outputs, audit_all
    from sdpo.parity.audit.request import Request

    requests = [
        Request(
            candidate,
            goldens=tuple(map(str, goldens or [])),
            declared=tuple(map(str, declared or [])),
            stages=tuple(_names(stages)),
            require=tuple(_names(require)),
            coverage=coverage,
            min_cases=min_cases,
            timeout=timeout,
            seed=seed,
            explore=explore,
        )
        for candidate in candidates or ["sdpo"]
    ]
    outputs = Outputs(out, json_, quiet, history, write_ledger, bundles)
    raise typer.Exit(audit_all(requests, outputs))


def regate(
    report: Annotated[Path, typer.Argument(help="A `report.json` of an audit.")],
    stages: Stages = "",
    declared: Declared = None,
    require: Require = "",
    coverage: Coverage = 0,
    min_cases: MinCases = 0,
    budget: Annotated[
        float | None,
        typer.Option(
            help="Share of its rounding budget that an element may use, such as 0.5; budgets are "
            "never loosened.",
            metavar="SHARE",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the reports of the new verdict.")
    ] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Judge an old report by another policy; nothing is run again.

    A report holds what was measured, so that it can be judged later: with other declared
    deviations, other stages, stages that must be covered, or a smaller share of the budgets. What
    is not given stays as the report was judged. Exit codes as of `sdpo audit`.

    Example: sdpo regate reports/audit/trl/report.json --declared deviations.toml
    """
    from sdpo.parity.audit.rejudge_and_replay import regate_all

    code = regate_all(
        report,
        stages=_names(stages),
        require=_names(require),
        coverage=coverage,
        min_cases=min_cases,
        declared=declared,
        budget=budget,
        out=out,
        as_json=json_,
        quiet=quiet,
    )
    raise typer.Exit(code)


def init(
    loss: Annotated[str, typer.Argument(metavar="FILE.py:attr", help="The loss function.")],
) -> None:
    """Print a wrapper around a loss, its arguments matched by name and the open ones marked.

    Example: sdpo init my_losses.py:distill > audit_distill.py
    """
    from sdpo.parity.audit.load_candidate import find
    from sdpo.parity.candidates.wrapper_text import wrapper_text
    from sdpo.parity.cases.checked_call import CandidateError
    from sdpo.parity.cases.failure import refuse

    try:
        function = find(loss)
    except CandidateError as error:
        raise typer.Exit(refuse(str(error), as_json=False)) from error
    if not callable(function):
        kind = type(function).__name__
        message = f"{loss} is a {kind}, no function: give FILE.py:attr"
        raise typer.Exit(refuse(message, as_json=False))
    print(wrapper_text(loss, function), end="")
