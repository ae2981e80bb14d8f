"""Writes a wrapper around a loss whose arguments cannot all be told, with the open ones marked."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sdpo.parity.candidates.argument_names import INPUT_NAMES, LOGITS_ARGUMENTS
from sdpo.parity.candidates.other_shapes import meaning_of
from sdpo.parity.cases.callables import signature_of
from sdpo.parity.cases.checked_call import CandidateError
from sdpo.parity.cases.loss_case import LOSS_SETTINGS

_HEAD = '''\
"""Audits {name}: save this beside it as {file}, and run `sdpo audit {file}:loss`."""

{imports}


def loss({inputs}, *, {options}config):
    """(B, T, V) logits before temperature, (B, T) token ids and mask; returns a scalar."""
{lines}'''


def wrapper_text(name: str, function: Callable[..., Any]) -> str:
    """Write a wrapper that gives a loss what its arguments mean, by their names.

    Args:
        name: of the loss, as an audit takes it: `FILE.py:attr` or `pkg.mod:attr`.
        function: the loss.
    """
    target, _, attribute = name.replace("::", ":").rpartition(":")
    module = Path(target).stem if target.endswith(".py") else target
    file = f"audit_{attribute.split('.')[-1]}.py"
    parameters = [
        (n, p)
        for n, p in signature_of(function).parameters.items()
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    given = [(n, _expression(n)) for n, p in parameters if _expression(n) or p.default is p.empty]
    missing = [n for n, expression in given if not expression]
    imports = ["from sdpo.parity import fill_in"] if missing else []
    first, _, rest = attribute.partition(".")
    imports.append(f"from {module} import {first}")
    optional = [n for n in INPUT_NAMES if n in {e for _, e in given} - {*LOGITS_ARGUMENTS}]
    choices = ", ".join([*LOGITS_ARGUMENTS, *(f"config.{n}" for n in LOSS_SETTINGS)])
    lines = [f"    return {first}{'.' * bool(rest)}{rest}("]
    lines += [f"        # each open one is among: {choices}"] if missing else []
    lines += [f"        {n}={e or f'fill_in({n!r})'}," for n, e in given]
    return _HEAD.format(
        name=name,
        file=file,
        imports="\n".join(imports),
        inputs=", ".join(LOGITS_ARGUMENTS),
        options="".join(f"{n}=None, " for n in optional),
        lines="\n".join([*lines, "    )", ""]),
    )


def _expression(name: str) -> str:
    """What a parameter is given in the wrapper; empty where that cannot be told."""
    meaning = meaning_of(name)
    if meaning == "labels":
        return "responses.masked_fill(response_mask == 0, -100)"
    if meaning in LOSS_SETTINGS:
        return f"config.{meaning}"
    if meaning in ("student_weight", "teacher_weight"):
        logits = meaning.replace("weight", "logits")
        return f"{logits}.new_ones({logits}.shape[-1]).diag()"
    return meaning


def fill_in(name: str) -> object:
    """Stand for an argument that `sdpo init` could not tell.

    Raises:
        CandidateError: always; the wrapper is not complete.
    """
    raise CandidateError("config", f"the wrapper's argument {name!r} is not filled in yet")
