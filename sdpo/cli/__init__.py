"""Command line: thin commands, heavy imports inside them so that `--help` answers at once."""

import sys

import click
import typer

from sdpo.cli import audit, mbpp

app = typer.Typer(
    name="sdpo",
    help="Verify SDPO implementations against the verl reference, stage by stage.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("audit")(audit.audit)
app.add_typer(mbpp.app, name="mbpp")


def main(argv: list[str] | None = None) -> None:
    """Run the command line; usage errors print one `ERROR` line and exit with code 2."""
    command = typer.main.get_command(app)
    try:
        code = command.main(args=argv, prog_name="sdpo", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = 0
    except click.ClickException as error:
        print(f"ERROR {error.format_message()} (see `sdpo --help`)")
        code = 2
    except click.exceptions.Abort:
        print("ERROR interrupted")
        code = 130
    sys.exit(code)
