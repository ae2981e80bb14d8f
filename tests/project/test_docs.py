"""What `make docs` writes: tables of trainers from their reports."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from sdpo.parity.cases.stages import NAMES
from sdpo.parity.faults.catalogue import BY_ID
from sdpo.parity.report.declared_deviations import load_for
from sdpo.parity.trainers.scenarios.catalogue import SCENARIOS

DOCS = Path(__file__).parents[2] / "docs"
OTHERS = ("M116 live", "M30 left")
PAGE = (DOCS / "peers.md").read_text(encoding="utf-8")


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    return module("peer_tables")


def effect(scenario, introduced, explained_by, ratio=1.0):
    figures = dict.fromkeys(
        ("gradient_cosine", "gradient_distance", "parameters_distance", "teacher_distance",
         "logged_loss", "optimised_loss", "reference_loss")
    )  # fmt: skip
    return figures | {
        "scenario": scenario,
        "description": f"what {scenario} is",
        "introduced": introduced,
        "explained_by": explained_by,
        "gradient_ratio": ratio,
    }


def comparison(stage, status="DIVERGENT", **more):
    return {"stage": stage, "status": status, **more}


@pytest.fixture
def run():
    """Two deviations: the mean over rows everywhere, and a teacher that moves too often."""
    comparisons = [comparison("aggregate"), comparison("gradient", inherits="aggregate")]
    rows = {name: "MATCH" for name in NAMES} | {"aggregate": "DIVERGENT", "gradient": "DIVERGENT"}
    return {
        "candidate": "trl",
        "verdict": "DIVERGENT",
        "first_stage": "aggregate",
        "notes": ["installed: trl 9.8.7, torch 2.0"],
        "explained_by": ["M115 rows", "M109 per step"],
        "totals": {"cases": 5, "elements": 7, "by_status": {"DIVERGENT": 5}},
        "seconds": 61.4,
        "stages": [{"name": name, "status": status} for name, status in rows.items()],
        "cases": [
            {"id": "T01", "family": "trainer", "status": "DIVERGENT", "note": "",
             "comparisons": comparisons},
            {"id": "T25", "family": "trainer", "status": "NOT_COVERED",
             "note": "not covered: no such mode", "comparisons": []},
            {"id": "T31", "family": "trainer", "status": "DIVERGENT", "note": "",
             "comparisons": [comparison("accumulate", effect="failure", note="it hangs")]},
            {"id": "C01", "family": "probe", "status": "DIVERGENT", "note": "it does not move",
             "comparisons": []},
        ],
        "invariants": [{"name": "row order", "status": "VIOLATED", "of_reference": "HOLDS"}],
        "trainer": [
            effect("T01", ["aggregate"], ["M08 other", "M115 rows"], 1.5),
            effect("T02", ["aggregate"], ["M115 rows"]),
            effect("T05", ["aggregate", "teacher_update"], ["M109 per step", "M115 rows", *OTHERS]),
            effect("T06", ["teacher_update"], ["M109 per step", *OTHERS]),
            effect("T17", ["aggregate", "teacher_update"], ["M115 rows"]),
        ],
    }  # fmt: skip


def test_a_stage_that_only_inherits_follows(tables, run):
    assert tables.status(run, "aggregate") == "DIVERGENT"
    assert tables.status(run, "gradient") == "follows"
    run["cases"][0]["comparisons"].append(comparison("gradient"))
    assert tables.status(run, "gradient") == "DIVERGENT"


def test_each_deviation_is_listed_where_it_shows_first(tables, run):
    found = [(e["scenario"], stages, fresh) for e, stages, fresh in tables.main_effects(run)]
    assert found == [
        ("T01", ["aggregate"], ["M115 rows"]),
        ("T05", ["teacher_update"], ["M109 per step"]),
        ("T17", ["teacher_update"], []),
    ]


def test_faults_that_explain_just_as_much_are_named(tables, run):
    assert tables.named(run, "M115 rows") == "M115 rows", "M08 does not explain T02"
    assert tables.named(run, "M109 per step") == "M109 per step (or M116)"


def test_the_page_of_a_run_says_what_it_holds(tables, run):
    page = tables.page([run])
    assert "| # | stage | TRL 9.8.7 |" in page
    assert "**DIVERGENT**, first at `aggregate`; 4 scenarios and 1 probes" in page
    assert "compared in 61 s" in page
    assert "- T25: no such mode" in page
    assert "- C01: it does not move" in page
    assert "- T31: it hangs\n" in page
    assert "| row order | VIOLATED | HOLDS |" in page
    assert "| T01 | what T01 is | `aggregate` | M115 | 1.5 | - |" in page


def test_docs_are_refused_without_the_peers(tables, monkeypatch):
    generate = module("generate")
    monkeypatch.setattr(generate, "find_spec", lambda name: None if name == "sdpo_rl" else name)
    with pytest.raises(SystemExit, match=r"sdpo-rl not installed.*pip install -e '\.\[peers\]'"):
        generate.require_peers()
    monkeypatch.setattr(generate, "find_spec", lambda name: name)
    generate.require_peers()


def test_trainers_are_audited_one_by_one_and_a_failure_stops(tables, monkeypatch):
    generate, asked = module("generate"), []

    def run(command, **_):
        asked.append(command[-3:])
        return SimpleNamespace(returncode=2 if "sdpo-rl" in command else 1)

    monkeypatch.setattr(generate.subprocess, "run", run)
    with pytest.raises(SystemExit, match="sdpo audit sdpo-rl ended with exit code 2"):
        generate.audit_trainers()
    assert asked == [["audit", name, "--quiet"] for name in ("sdpo-trainer", "trl", "sdpo-rl")]


def test_the_written_page_is_of_these_scenarios_and_ledgers():
    for scenario in SCENARIOS:
        assert PAGE.count(scenario.description) >= 1, scenario.id
    for peer in ("trl", "sdpo-rl"):
        for entry in load_for([peer]):
            assert f"- **{entry.id}** `{entry.stages[0]}`" in PAGE
            assert entry.reason in PAGE
    assert all(f"`{name}`" in PAGE for name in NAMES)
    assert "M115" in PAGE
    assert "M115" in BY_ID
