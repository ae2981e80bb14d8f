"""`sdpo mbpp`: confined scoring of MBPP completions."""

import typer

app = typer.Typer(help="MBPP code generation: run and score completions in confinement.")


@app.callback()
def mbpp() -> None:
    """MBPP code generation: run and score completions in confinement."""
