"""Default drift: every setting of SDPO, in verl's three layers, here, and in other packages."""

import ast
import importlib.resources
import inspect
import json
import textwrap
import tomllib
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from itertools import chain, pairwise
from typing import Any

from sdpo.fixtures import packaged_family
from sdpo.parity.drift.peer_defaults import PEERS, Defaults, Peer, read
from sdpo.parity.recorded.settings import null, reference_settings
from sdpo.settings.config import SDPOConfig
from sdpo.settings.templates import SLOTS

BASE = "verl sdpo.yaml"
NOT_THERE = "-"
FIXED = "no setting"
SCRIPTS = ("script generalization", "script rich feedback")
LIMIT = 48


def provenance() -> dict[str, Any]:
    """The reference's provenance file."""
    text = (importlib.resources.files("sdpo.reference") / "PROVENANCE.toml").read_text("utf-8")
    return tomllib.loads(text)


def verl_layers() -> dict[str, dict[str, Any]]:
    """Layers of verl by the name of their column: from the provenance file, templates as recorded.

    sdpo.yaml does not touch the templates that it takes from actor.yaml.
    """
    layers, settings = provenance()["layers"], reference_settings()
    recorded = packaged_family("reprompt").manifest
    in_class, in_yaml = (
        {name: recorded[defaults][name] for name in SLOTS}
        for defaults in ("defaults_dataclass", "defaults_yaml")
    )
    columns = {
        "verl dataclass": settings["dataclass"] | in_class,
        "verl actor.yaml": layers["actor_yaml"] | in_yaml,
        BASE: settings["sdpo_yaml"] | layers["sdpo_yaml"] | in_yaml,
        "script generalization": layers["script_generalization"],
        "script rich feedback": layers["script_rich_feedback"],
    }
    return {
        column: {name: null(value) for name, value in c.items()} for column, c in columns.items()
    }


def meanings() -> dict[str, str]:
    """What each of our settings means: the text below it in `SDPOConfig` or a base of it."""
    sources = [inspect.getsource(cls) for cls in SDPOConfig.__mro__ if is_dataclass(cls)]
    statements = ast.walk(ast.parse("\n".join(map(textwrap.dedent, sources))))
    bodies = [node.body for node in statements if isinstance(node, ast.ClassDef)]
    found = {}
    for setting, text in chain.from_iterable(map(pairwise, bodies)):
        if isinstance(setting, ast.AnnAssign) and isinstance(setting.target, ast.Name):
            said = text.value if isinstance(text, ast.Expr) else None
            if isinstance(said, ast.Constant):
                found[setting.target.id] = " ".join(str(said.value).split())
    return found


def drift(peers: Sequence[Peer] = PEERS) -> dict[str, Any]:
    """The table as a document: columns, one row for each setting, settings that others add."""
    layers, ours, said = verl_layers(), SDPOConfig(), meanings()
    found, names = [read(peer) for peer in peers], provenance()["names"]
    rows = []
    for name in [f.name for f in fields(SDPOConfig)]:
        cells = {
            column: cell(layer[name]) | {"there": "" if column in SCRIPTS else names.get(name, "")}
            for column, layer in layers.items()
            if name in layer
        }
        cells["ours"] = cell(getattr(ours, name))
        for peer, known in zip(found, peers, strict=True):
            if peer.version and not peer.problem and name in known.fixed:
                cells[peer.name] = {"value": known.fixed[name], "there": FIXED}
            if name in peer.values:
                value, theirs, raw = peer.values[name]
                own = "" if (theirs, raw) == (name, value) else f"{theirs}={shown(raw)}"
                cells[peer.name] = cell(value) | {"there": own}
        base = cells.get(BASE, cells["ours"])
        for one in cells.values():
            one["differs"] = one["value"] != base["value"]
        rows.append({"setting": name, "meaning": said.get(name, ""), "cells": cells})
    return {
        "schema_version": 1,
        "columns": [*layers, "ours", *(peer.name for peer in found)],
        "base": BASE,
        "peers": [state(peer, known) for peer, known in zip(found, peers, strict=True)],
        "settings": rows,
        "elsewhere": [
            further(known, name, value, text)
            for peer, known in zip(found, peers, strict=True)
            for name, value, text in peer.other
        ],
    }


def further(peer: Peer, name: str, value: Any, meaning: str) -> dict[str, str]:
    """A setting that is no part of SDPO, with verl's name and value if it has one."""
    values, theirs = provenance()["further"], peer.further.get(name, "")
    told = [f"{one}={shown(values[one])}" for one in theirs.split(" and ") if one]
    return {
        "package": peer.name,
        "setting": name,
        "default": shown(value),
        "verl": ", ".join(told),
        "meaning": "; ".join(text for text in (meaning, peer.remarks.get(name, "")) if text),
    }


def cell(value: Any) -> dict[str, Any]:
    """A value in a form that can be compared and printed."""
    number = float(value) if isinstance(value, int) and not isinstance(value, bool) else value
    return {"value": shown(number), "there": ""}


def shown(value: Any) -> str:
    """A default as text; whole numbers without a point."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def state(peer: Defaults, known: Peer) -> dict[str, Any]:
    """Whether a package could be read, and what about it is not as it was when this was written."""
    remarks = [peer.problem] if peer.problem else []
    if peer.version and not peer.version.startswith(known.tested):
        remarks.append(f"version {peer.version} has not been tested, {known.tested} has")
    remarks += [f"setting {name} is gone: the mapping needs an update" for name in peer.gone]
    broken = bool(peer.version and (peer.problem or peer.gone))
    return {"name": peer.name, "version": peer.version, "remarks": remarks, "broken": broken}


def first_line(document: dict[str, Any]) -> str:
    """Counts, and what could not be read."""
    differing = sum(any(c["differs"] for c in r["cells"].values()) for r in document["settings"])
    missing = [peer["name"] for peer in document["peers"] if peer["remarks"]]
    line = f"DRIFT settings={len(document['settings'])} differing={differing}"
    return line + f" columns={len(document['columns'])} incomplete={','.join(missing) or 'none'}"


def markdown(document: dict[str, Any]) -> str:
    """The document as Markdown; values that differ from the base are bold."""
    peers = {peer["name"]: peer for peer in document["peers"]}
    heads = [
        f"{name} {peers[name]['version']}".strip() if name in peers else name
        for name in document["columns"]
    ]
    lines = [first_line(document), ""]
    lines.append("| setting | " + " | ".join(heads) + " | meaning |")
    lines.append("|---" * (len(heads) + 2) + "|")
    for row in document["settings"]:
        cells = [text_of(row["cells"].get(c), peers.get(c)) for c in document["columns"]]
        columns = [f"`{row['setting']}`", *cells, plain(row["meaning"])]
        lines.append("| " + " | ".join(columns) + " |")
    lines += [
        "",
        f"Bold: differs from {document['base']}, or from ours where that has no such setting. "
        f"{NOT_THERE}: no such setting there; a script leaves it as it is. In brackets: what it is "
        "called there. ⏎ is a line break; of a long text the middle is left out, but texts are "
        "compared whole.",
    ]
    for peer in document["peers"]:
        lines += [f"- {peer['name']}: {remark}" for remark in peer["remarks"]]
    if document["elsewhere"]:
        head = f"| package | further setting | default | the same in {BASE} | meaning |"
        lines += ["", head, "|---|---|---|---|---|"]
        lines += [
            f"| {e['package']} | `{e['setting']}` | `{cut(e['default'])}` | "
            f"{plain(e['verl']) or NOT_THERE} | {plain(e['meaning'])} |"
            for e in document["elsewhere"]
        ]
    return "\n".join(lines)


def text_of(found: dict[str, Any] | None, peer: dict[str, Any] | None) -> str:
    """One cell of the table."""
    if found is None:
        return peer["remarks"][0] if peer and not peer["version"] else NOT_THERE
    value = f"`{cut(found['value'])}`"
    value = f"**{value}**" if found["differs"] else value
    return f"{value} ({plain(cut(found['there']))})" if found["there"] else value


def cut(text: str) -> str:
    """A text in one line of a table; a long one lacks its middle, templates differ at the end."""
    line = text.replace("\n", "⏎").replace("|", "\\|").replace("`", "'")
    half = LIMIT // 2
    return line if len(line) <= LIMIT else f"{line[:half]}…{line[-half:]}"


def plain(text: str) -> str:
    """A text of others in a table."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
