"""History and trend: lines are only added, and every way to loosen a tolerance alarms."""

import json
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
from msgspec import structs

from sdpo.cli import main
from sdpo.parity.report.history import HistoryError, Line, append, line_of, read
from sdpo.parity.report.run_report import RunReport
from sdpo.parity.report.trend import alarms, bars, findings, tightest
from tests.helpers import run_documents
from tests.helpers.run_documents import changed


def line(**changes):
    document = msgspec.to_builtins(run_documents.declared())
    document["environment"]["tolerances"] = {"loss_roundings": 2.5, "update_slack": 4.0}
    document["sensitivity"]["smallest_detectable"] = {"aggregate": 1e-7}
    document["policy"] |= {"require": ["aggregate"], "coverage": 1, "budget": 0.5}
    document["declared"][0] |= {"range": [0.1, 0.2], "expires": "2027-01-01", "cases": ["P-2"]}
    return structs.replace(line_of(msgspec.convert(document, RunReport)), **changes)


def moved(*path, value):
    document = msgspec.to_builtins(line())
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return msgspec.convert(document, Line)


NEW = {"range": None, "expires": None, "stages": ["tail"], "cases": []}
LOOSER = [
    (("tolerances", "loss_roundings"), 3.0, "tolerance loss_roundings grew from 2.5 to 3"),
    (("tolerances",), {}, "tolerance loss_roundings is no longer recorded"),
    (("smallest_detectable", "aggregate"), 2e-7, "aggregate: the smallest detectable change grew"),
    (("policy", "budget"), 1.0, "share of the budgets grew from 0.5 to 1"),
    (("policy", "coverage"), 0, "required coverage fell from 1 to 0"),
    (("policy", "require"), [], "no longer required: aggregate"),
    (("covered",), [], "no longer covered: aggregate"),
    (("declared", "D02"), NEW, "deviation D02 was declared"),
    (("declared", "D01", "range"), [0.1, 0.3], "range of D01 grew"),
    (("declared", "D01", "range"), [0.0, 0.2], "range of D01 grew"),
    (("declared", "D01", "range"), None, "range of D01 grew"),
    (("declared", "D01", "expires"), "2028-01-01", "expiry of D01 moved"),
    (("declared", "D01", "expires"), None, "expiry of D01 moved from 2027-01-01 to never"),
    (("declared", "D01", "stages"), ["aggregate", "gradient"], "D01 covers more stages"),
    (("declared", "D01", "cases"), ["P-2", "P-3"], "D01 covers more cases"),
    (("declared", "D01", "cases"), [], "D01 covers more cases"),
]


@pytest.mark.parametrize(("path", "value", "words"), LOOSER)
def test_a_loosened_tolerance_alarms(path, value, words):
    found = alarms(line(), moved(*path, value=value))
    assert any(words in text for text in found), found


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("tolerances", "loss_roundings"), 2.0),
        (("smallest_detectable", "aggregate"), 1.005e-7),
        (("policy", "budget"), 0.25),
        (("declared", "D01", "range"), [0.12, 0.18]),
        (("declared", "D01", "expires"), "2026-06-01"),
        (("declared",), {}),
        (("budget_used", "aggregate"), 0.9),
        (("verdict",), "DIVERGENT"),
    ],
)
def test_what_is_tighter_or_no_tolerance_does_not_alarm(path, value):
    assert alarms(line(), moved(*path, value=value)) == []
    assert alarms(line(), line()) == []


def test_other_golden_data_have_another_smallest_change():
    other = structs.replace(
        moved("smallest_detectable", "aggregate", value=1.0), goldens={"loss": "00"}
    )
    assert alarms(line(), other) == []


def test_ratchet_compares_with_the_tightest_ever():
    lines = [moved("tolerances", "loss_roundings", value=2.0), line(), line()]
    assert findings(lines, ratchet=False, every=False)[0].alarms == []
    (alarm,) = findings(lines, ratchet=True, every=False)[0].alarms
    assert "from 2 to 2.5" in alarm.alarm
    (alarm,) = findings(lines, ratchet=False, every=True)[0].alarms
    assert "from 2 to 2.5" in alarm.alarm
    for path, value, words in LOOSER[2:9]:
        looser = moved(*path, value=value)
        assert any(words in text for text in alarms(tightest([line(), looser]), looser)), words


def test_candidates_are_apart():
    other = line(candidate="other", tolerances={"loss_roundings": 9.0})
    rows = findings([line(), other, line()], ratchet=False, every=True)
    assert [(r.candidate, r.runs, r.alarms) for r in rows] == [
        ("loss.py:f", 2, []),
        ("other", 1, []),
    ]


def test_bars_show_beyond_and_nothing():
    assert bars([0.0, 0.5, 1.0, 1.5, "inf", None]) == "▁▅█!!."


def test_many_writers_lose_no_line(tmp_path):
    path = tmp_path / "new" / "history.jsonl"
    runs = [structs.replace(run_documents.divergent(), candidate=f"c{n}") for n in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda run: append(path, run), runs))
    assert sorted(row.candidate for row in read(path)) == sorted(run.candidate for run in runs)


def test_a_torn_line_does_not_take_the_next_one_with_it(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text('{"torn": ')
    append(path, run_documents.passing())
    assert path.read_text().startswith('{"torn": \n{')
    with pytest.raises(HistoryError, match="line 1: not JSON"):
        read(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot read"),
        ("", "is empty"),
        ("[]", "line 1: not a line"),
        ("{}", "line 1: not a line"),
        (json.dumps(msgspec.to_builtins(line()) | {"schema_version": 2}), "not a line"),
        ("\udcff", "not UTF-8"),
    ],
)
def test_no_history_is_one_error_line(text, words, tmp_path, capsys):
    path = tmp_path / "history.jsonl"
    if text is not None:
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(SystemExit) as ended:
        main(["trend", str(path)])
    assert ended.value.code == 2
    printed = capsys.readouterr().out
    assert printed.startswith("ERROR ")
    assert words in printed


def test_command_alarms_with_exit_code_one(tmp_path, capsys):
    path = tmp_path / "history.jsonl"
    run = run_documents.passing()
    place = ("environment", "tolerances")
    append(path, changed(run, *place, value={"loss_roundings": 2.5}))
    with pytest.raises(SystemExit) as ended:
        main(["trend", str(path)])
    assert ended.value.code == 0
    append(path, changed(run, *place, value={"loss_roundings": 25.0}))
    with pytest.raises(SystemExit) as ended:
        main(["trend", str(path)])
    assert ended.value.code == 1
    printed = capsys.readouterr().out
    assert "LOOSENED candidates=1 runs=2 alarms=1" in printed
    with pytest.raises(SystemExit):
        main(["trend", str(path), "--json"])
    assert json.loads(capsys.readouterr().out)["candidates"][0]["runs"] == 2
