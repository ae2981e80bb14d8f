"""Command line: thin commands, heavy imports inside them so that `--help` answers at once."""

import sys

import typer

from sdpo.cli import audit, drift, mbpp, mutants, replay, trend

# typer carries its own copy of click: its exceptions are reached through typer's names
ClickException: type[Exception] = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="sdpo",
    help="Verify SDPO implementations against the verl reference, stage by stage.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("audit")(audit.audit)
app.command("regate")(audit.regate)
app.command("replay")(replay.replay)
app.command("trend")(trend.trend)
app.command("drift")(drift.drift)
app.command("mutants")(mutants.mutants)
app.add_typer(mbpp.app, name="mbpp")


def main(argv: list[str] | None = None) -> None:
    """Run the command line; usage errors print one `ERROR` line and exit with code 2."""
    command = typer.main.get_command(app)
    try:
        code = command.main(args=argv, prog_name="sdpo", standalone_mode=False)
    except ClickException as error:
        print(f"ERROR {' '.join(str(error).split())} (see `sdpo --help`)")
        code = 2
    except (typer.Abort, KeyboardInterrupt):
        print("ERROR interrupted")
        code = 130
    sys.exit(code)
