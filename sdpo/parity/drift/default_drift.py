"""Default drift: every setting of SDPO, in verl's three layers, here, and in other packages."""

import ast
import importlib.resources
import inspect
import json
import textwrap
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from itertools import chain, pairwise

import msgspec

from sdpo.fixtures import packaged_family
from sdpo.parity.drift.peer_defaults import PEERS, Defaults, Peer, read
from sdpo.parity.recorded.settings import null, reference_settings
from sdpo.settings.config import SDPOConfig
from sdpo.settings.templates import SLOTS

BASE = "verl sdpo.yaml"
_NOT_THERE = "-"
_FIXED = "no setting"
_SCRIPTS = ("script generalization", "script rich feedback")
_LONGEST_TEXT = 48

Default = bool | int | float | str | dict[str, bool] | None
"""What a layer of verl sets."""


class Provenance(msgspec.Struct, frozen=True):
    """The tables of the reference's provenance file that settings are read from.

    `layers` are settings by layer, `names` what verl calls a setting of ours, `further` values of
    settings that are no part of SDPO.
    """

    layers: dict[str, dict[str, Default]]
    names: dict[str, str]
    further: dict[str, Default]


class Cell(msgspec.Struct):
    """A default as text, what it is called there, and whether it differs from the base."""

    value: str
    there: str = ""
    differs: bool = False


class SettingRow(msgspec.Struct, frozen=True):
    """A setting of ours: what it means, and its default by column, where there is one."""

    setting: str
    meaning: str
    cells: dict[str, Cell]


class PeerState(msgspec.Struct, frozen=True):
    """Whether a package could be read, and what about it is not as it was when this was written."""

    name: str
    version: str
    remarks: list[str]
    broken: bool


class FurtherSetting(msgspec.Struct, frozen=True):
    """A package's setting that is no part of SDPO, with verl's name and value if it has one."""

    package: str
    setting: str
    default: str
    verl: str
    meaning: str


class DriftTable(msgspec.Struct, frozen=True):
    """All defaults beside each other; `elsewhere` are settings that other packages add."""

    schema_version: int
    columns: list[str]
    base: str
    peers: list[PeerState]
    settings: list[SettingRow]
    elsewhere: list[FurtherSetting]

    def json(self) -> str:
        """Return the table as a JSON document."""
        return json.dumps(msgspec.to_builtins(self))

    def first_line(self) -> str:
        """Count the settings and those that differ, and name what could not be read."""
        differing = sum(any(c.differs for c in row.cells.values()) for row in self.settings)
        missing = [peer.name for peer in self.peers if peer.remarks]
        line = f"DRIFT settings={len(self.settings)} differing={differing}"
        return line + f" columns={len(self.columns)} incomplete={','.join(missing) or 'none'}"


def provenance() -> Provenance:
    """Read the reference's provenance file."""
    text = (importlib.resources.files("sdpo.reference") / "PROVENANCE.toml").read_text("utf-8")
    return msgspec.convert(tomllib.loads(text), Provenance)


def verl_layers() -> dict[str, dict[str, Default]]:
    """Read verl's layers, by column: from the provenance file, templates as recorded.

    sdpo.yaml does not touch the templates that it takes from actor.yaml.
    """
    layers, settings = provenance().layers, reference_settings()
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
        column: {name: null(value) for name, value in layer.items()}
        for column, layer in columns.items()
    }


def _meanings() -> dict[str, str]:
    """What each of our settings means: the text below it in `SDPOConfig` or a base of it."""
    sources = [inspect.getsource(cls) for cls in SDPOConfig.__mro__ if is_dataclass(cls)]
    statements = ast.walk(ast.parse("\n".join(map(textwrap.dedent, sources))))
    bodies = [node.body for node in statements if isinstance(node, ast.ClassDef)]
    meanings = {}
    for setting, text in chain.from_iterable(map(pairwise, bodies)):
        if isinstance(setting, ast.AnnAssign) and isinstance(setting.target, ast.Name):
            constant = text.value if isinstance(text, ast.Expr) else None
            if isinstance(constant, ast.Constant):
                meanings[setting.target.id] = " ".join(str(constant.value).split())
    return meanings


@dataclass(frozen=True)
class _Package:
    """A package with its defaults as they were read."""

    peer: Peer
    defaults: Defaults

    def cell(self, name: str) -> Cell | None:
        """The default that stands for a setting of ours."""
        if default := self.defaults.values.get(name):
            value, theirs, raw = default
            same = (theirs, raw) == (name, value)
            return _cell(value, "" if same else f"{theirs}={_shown(raw)}")
        read_in_full = self.defaults.version and not self.defaults.problem
        if read_in_full and name in self.peer.fixed:
            return Cell(self.peer.fixed[name], _FIXED)
        return None

    def state(self) -> PeerState:
        """Whether it could be read, and what about it is not as it was."""
        read_, tested = self.defaults, self.peer.tested
        remarks = [read_.problem] if read_.problem else []
        if read_.version and not read_.version.startswith(tested):
            remarks.append(f"version {read_.version} has not been tested, {tested} has")
        remarks += [f"setting {name} is gone: the mapping needs an update" for name in read_.gone]
        broken = bool(read_.version and (read_.problem or read_.gone))
        return PeerState(read_.name, read_.version, remarks, broken)

    def further(self, of_verl: Mapping[str, Default]) -> Iterator[FurtherSetting]:
        """The settings that are no part of SDPO, beside verl's values of those it has too."""
        for name, value, meaning in self.defaults.other:
            theirs = self.peer.further.get(name, "")
            values = [f"{key}={_shown(of_verl[key])}" for key in theirs.split(" and ") if key]
            texts = [text for text in (meaning, self.peer.remarks.get(name, "")) if text]
            yield FurtherSetting(
                self.peer.name, name, _shown(value), ", ".join(values), "; ".join(texts)
            )


def drift(peers: Sequence[Peer] = PEERS) -> DriftTable:
    """Read all defaults, here and in other packages, and put them beside each other."""
    layers, meanings, of_verl = verl_layers(), _meanings(), provenance()
    packages = [_Package(peer, read(peer)) for peer in peers]
    rows = []
    for name in [f.name for f in fields(SDPOConfig)]:
        cells = {
            column: _cell(layer[name], "" if column in _SCRIPTS else of_verl.names.get(name, ""))
            for column, layer in layers.items()
            if name in layer
        }
        cells["ours"] = _cell(getattr(SDPOConfig(), name))
        cells |= {p.peer.name: cell for p in packages if (cell := p.cell(name))}
        base = cells.get(BASE, cells["ours"])
        for cell in cells.values():
            cell.differs = cell.value != base.value
        rows.append(SettingRow(name, meanings.get(name, ""), cells))
    return DriftTable(
        schema_version=1,
        columns=[*layers, "ours", *(package.peer.name for package in packages)],
        base=BASE,
        peers=[package.state() for package in packages],
        settings=rows,
        elsewhere=[row for package in packages for row in package.further(of_verl.further)],
    )


def _cell(value: object, there: str = "") -> Cell:
    """A value in a form that can be compared and printed: whole numbers as other numbers."""
    number = float(value) if isinstance(value, int) and not isinstance(value, bool) else value
    return Cell(_shown(number), there)


def _shown(value: object) -> str:
    """A default as text; whole numbers without a point."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)


def markdown(table: DriftTable) -> str:
    """Render the table as Markdown; values that differ from the base are bold."""
    peers = {peer.name: peer for peer in table.peers}
    heads = [f"{c} {peers[c].version}".strip() if c in peers else c for c in table.columns]
    lines = [table.first_line(), ""]
    lines.append("| setting | " + " | ".join(heads) + " | meaning |")
    lines.append("|---" * (len(heads) + 2) + "|")
    for row in table.settings:
        cells = [_cell_text(row.cells.get(c), peers.get(c)) for c in table.columns]
        columns = [f"`{row.setting}`", *cells, _plain(row.meaning)]
        lines.append("| " + " | ".join(columns) + " |")
    lines += [
        "",
        f"Bold: differs from {table.base}, or from ours where that has no such setting. "
        f"{_NOT_THERE}: no such setting there; a script leaves it as it is. In brackets: what it "
        "is called there. ⏎ is a line break; of a long text the middle is left out, but texts are "
        "compared whole.",
    ]
    for peer in table.peers:
        lines += [f"- {peer.name}: {remark}" for remark in peer.remarks]
    if table.elsewhere:
        head = f"| package | further setting | default | the same in {BASE} | meaning |"
        lines += ["", head, "|---|---|---|---|---|"]
        lines += [
            f"| {row.package} | `{row.setting}` | `{_cut(row.default)}` | "
            f"{_plain(row.verl) or _NOT_THERE} | {_plain(row.meaning)} |"
            for row in table.elsewhere
        ]
    return "\n".join(lines)


def _cell_text(cell: Cell | None, peer: PeerState | None) -> str:
    """A cell of the table; of a package that is not installed its problem."""
    if cell is None:
        return peer.remarks[0] if peer and not peer.version else _NOT_THERE
    value = f"`{_cut(cell.value)}`"
    value = f"**{value}**" if cell.differs else value
    return f"{value} ({_plain(_cut(cell.there))})" if cell.there else value


def _cut(text: str) -> str:
    """A text in one line of a table; a long one lacks its middle, templates differ at the end."""
    line = text.replace("\n", "⏎").replace("|", "\\|").replace("`", "'")
    half = _LONGEST_TEXT // 2
    return line if len(line) <= _LONGEST_TEXT else f"{line[:half]}…{line[-half:]}"


def _plain(text: str) -> str:
    """A text of others in a table."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
