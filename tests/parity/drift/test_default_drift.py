"""The table of defaults: made by importing, complete, and silent about nothing."""

import json
import sys
from dataclasses import fields, replace

import pytest

from sdpo.cli import main
from sdpo.parity.drift import default_drift as module
from sdpo.parity.drift import peer_defaults
from sdpo.parity.drift.default_drift import (
    BASE,
    Cell,
    FurtherSetting,
    drift,
    markdown,
    provenance,
    verl_layers,
)
from sdpo.parity.drift.peer_defaults import PEERS, Peer, read
from sdpo.settings.config import SDPOConfig
from sdpo.settings.templates import SLOTS

SETTINGS = """
from dataclasses import dataclass, field

@dataclass
class Base:
    distillation_topk: int = 100

@dataclass
class Config(Base):
    divergence: float = field(default=0.25, metadata={"help": "What it is. And more."})
    extra: str = field(default="a | b", metadata={"help": "Only | here. Nowhere else."})
    needed: int = field(default_factory=lambda: 3)
"""


@pytest.fixture
def peer(tmp_path, monkeypatch):
    (tmp_path / "a_peer_of_ours.py").write_text(SETTINGS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(peer_defaults.importlib.metadata, "version", lambda name: "1.2")
    names = {"alpha": "divergence", "distillation_topk": "distillation_topk"}
    yield Peer("a-peer", "a-peer", "a_peer_of_ours", "Config", "1.2", names)
    sys.modules.pop("a_peer_of_ours", None)


def cells(document, setting):
    (row,) = [row for row in document.settings if row.setting == setting]
    return row.cells


def test_defaults_come_from_importing_the_package(peer):
    document = drift([peer])
    alpha = cells(document, "alpha")["a-peer"]
    assert alpha == Cell("0.25", "divergence=0.25", True)
    assert cells(document, "distillation_topk")["a-peer"].differs is False
    assert "a-peer" not in cells(document, "is_clip")
    assert document.elsewhere == [
        FurtherSetting("a-peer", "extra", "a | b", "", "Only | here"),
        FurtherSetting("a-peer", "needed", "3", "", ""),
    ]
    text = markdown(document)
    assert "**`0.25`** (divergence=0.25)" in text
    assert r"| a-peer | `extra` | `a \| b` | - | Only \| here |" in text


def test_a_package_that_is_not_installed_is_a_column_that_says_so(peer, monkeypatch):
    def absent(name):
        raise peer_defaults.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(peer_defaults.importlib.metadata, "version", absent)
    document = drift([peer])
    assert "incomplete=a-peer" in document.first_line()
    rows = [line for line in markdown(document).splitlines() if line.startswith("| `")]
    assert len(rows) == len(fields(SDPOConfig))
    assert all(" not installed |" in line for line in rows)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"module": "a_module_that_is_not_there"}, "cannot read a_module_that_is_not_there.Config"),
        ({"attribute": "Absent"}, "AttributeError"),
        ({"names": {"alpha": "kl_weight"}}, "setting kl_weight is gone"),
        ({"tested": "0.9"}, "version 1.2 has not been tested, 0.9 has"),
    ],
)
def test_what_changed_in_a_package_is_said(changes, words, peer, monkeypatch, capsys):
    other = Peer(**{**vars(peer), **changes})
    document = drift([other])
    (state,) = document.peers
    assert words in " ".join(state.remarks)
    assert state.broken == ("tested" not in changes)
    assert words in markdown(document)
    monkeypatch.setattr(module, "drift", lambda: document)
    with pytest.raises(SystemExit) as ended:
        main(["drift", "--json"])
    assert ended.value.code == (3 if state.broken else 0)
    assert json.loads(capsys.readouterr().out)["schema_version"] == 1


def test_every_setting_of_ours_has_a_row_and_a_meaning():
    document = drift([])
    assert [row.setting for row in document.settings] == [f.name for f in fields(SDPOConfig)]
    assert all(row.meaning for row in document.settings)
    assert document.columns[:3] == ["verl dataclass", "verl actor.yaml", BASE]
    assert cells(document, "alpha")["verl dataclass"] == Cell("0", "", True)


def test_no_cell_of_a_template_is_empty_and_texts_are_compared_whole():
    layers = verl_layers()
    for name in SLOTS:
        assert layers[BASE][name] == layers["verl actor.yaml"][name] == getattr(SDPOConfig(), name)
        row = cells(drift([]), name)
        assert row["verl dataclass"].differs  # by line breaks at the end alone
        assert not row[BASE].differs


def test_a_setting_that_verl_has_by_another_name_is_given_with_it(peer):
    asked = replace(peer, further={"extra": "rollout.n", "needed": "rollout.top_p and rollout.n"})
    told = {row.setting: row.verl for row in drift([asked]).elsewhere}
    assert told == {"extra": "rollout.n=8", "needed": "rollout.top_p=1, rollout.n=8"}
    assert "setting absent is gone" in str(drift([replace(peer, further={"absent": "rollout.n"})]))


def test_every_name_of_verl_has_its_value_written_down():
    values = provenance().further
    asked = {n for peer in PEERS for names in peer.further.values() for n in names.split(" and ")}
    assert asked == values.keys()


def test_what_a_package_always_does_stands_where_verl_has_a_setting(peer):
    always = drift([replace(peer, fixed={"loss_agg_mode": "always so"})])
    cell = cells(always, "loss_agg_mode")["a-peer"]
    assert cell == Cell("always so", "no setting", True)


def test_no_setting_of_trl_is_called_what_it_is_not():
    trl = next(peer for peer in PEERS if peer.name == "trl")
    assert "loss_type" not in trl.names.values()
    for name in ("max_prompt_length", "max_completion_length", "num_generations", "top_p"):
        assert trl.further[name] in provenance().further


def test_layers_agree_with_the_presets():
    layers = verl_layers()
    assert {
        name: value
        for name, value in layers["verl actor.yaml"].items()
        if value != layers[BASE][name]
    } == {"lr": 1e-6, "enabled": False}
    presets = {
        "script generalization": "paper_generalization",
        "script rich feedback": "paper_rich_feedback",
    }
    for layer, preset in presets.items():
        config = SDPOConfig.preset(preset)
        told = {k: v for k, v in layers[layer].items() if k != "teacher_update_rate"}
        assert {name: getattr(config, name) for name in told} == told


@pytest.mark.slow
@pytest.mark.parametrize("peer", PEERS, ids=lambda p: p.name)
def test_installed_packages_are_read_in_full(peer):
    found = read(peer)
    if found.problem == "not installed":
        pytest.skip(f"{peer.name} is not installed")
    assert (found.problem, found.gone) == ("", ())
    assert found.values.keys() == peer.names.keys()


def test_a_setting_whose_value_is_the_word_none_is_not_null():
    rows = {row.setting: row.cells for row in drift([]).settings}
    assert SDPOConfig().share_prompts == "none"
    assert rows["share_prompts"]["ours"].value == "none"
    assert rows["distillation_topk"]["verl dataclass"].value == "null"
