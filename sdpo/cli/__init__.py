"""Command line: thin commands, heavy imports inside them so that `--help` answers at once."""

import sys
from typing import Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from sdpo.cli import audit, drift, mbpp, mutants, record, replay, trend, watch
from sdpo.parity.cases.failure import FAILED, CrashError, ended, refuse


class Commands(TyperGroup):
    """All commands; what one raises passes typer by, which would end some of it by exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for.

        Raises:
            CrashError: it failed otherwise than by an exit code or a usage error.
        """
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, TyperException):
            raise
        except (Exception, KeyboardInterrupt) as error:
            raise CrashError from error


app = typer.Typer(
    name="sdpo",
    help="Verify SDPO implementations against the verl reference, stage by stage.",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("audit")(audit.audit)
app.command("regate")(audit.regate)
app.command("replay")(replay.replay)
app.command("init")(audit.init)
app.command("record")(record.record)
app.command("trend")(trend.trend)
app.command("watch")(watch.watch)
app.command("drift")(drift.drift)
app.command("mutants")(mutants.mutants)
app.add_typer(mbpp.app, name="mbpp")


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit.

    A usage error or failure prints one line, with `--json` one document, and exits with code 2.
    """
    command = typer.main.get_command(app)
    as_json = "--json" in (sys.argv[1:] if argv is None else argv)

    def run() -> int:
        try:
            return command.main(args=argv, prog_name="sdpo", standalone_mode=False)
        except TyperException as error:
            message = " ".join(str(error).split())
            if not message:  # nothing was asked for, and the help was printed
                return FAILED
            return refuse(f"{message} (see `sdpo --help`)", as_json)
        except typer.Abort:
            raise KeyboardInterrupt from None

    sys.exit(ended(run, as_json=as_json))
