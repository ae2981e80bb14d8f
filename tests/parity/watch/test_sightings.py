"""What departs in a report, and the deviations that it stands for."""

import tomllib

import msgspec

from sdpo.parity.report.report_context import Deviation
from sdpo.parity.watch.release_audit import line_of
from sdpo.parity.watch.sightings import departures_of, judged_cases, sightings
from sdpo.parity.watch.upstreams import Upstream
from tests.helpers.stand_in_releases import run_that_shows

LEDGER = msgspec.convert(
    tomllib.loads("""
[[deviation]]
id = "X-01"
candidates = ["mine"]
stages = ["aggregate"]
effect = "value"
cases = ["T01", "T02"]
fault = "M115"
reason = "known"

[[deviation]]
id = "Y-01"
candidates = ["another"]
stages = ["aggregate"]
effect = "value"
reason = "of another candidate"
""")["deviation"],
    list[Deviation],
)


def seen(run):
    return sightings(line_of(run, Upstream("mine", "p"), "1.0", "", {}), LEDGER)


def test_departures_go_under_the_entry_that_speaks_of_them_with_the_largest_size():
    of_release = seen(run_that_shows({("T01", "aggregate"): 0.5, ("T02", "aggregate"): 0.7}))
    assert list(of_release) == ["X-01"]
    assert of_release["X-01"].sizes == {"T01": 0.5, "T02": 0.7}
    assert of_release["X-01"].fault == "M115"


def test_what_no_entry_speaks_of_is_named_by_stage_effect_and_the_fault_of_that_stage():
    faults = {"M115 mean of means": ("T03",), "M30 left truncation": ("T03",)}
    of_release = seen(
        run_that_shows({("T03", "aggregate"): 0.5, ("T03", "optimizer"): 0.1}, faults=faults)
    )
    assert list(of_release) == ["aggregate value M115", "optimizer value"]


def test_two_faults_that_act_together_name_both():
    faults = {"M115 mean of means + M07 all rows": ("T03",)}
    (name,) = seen(run_that_shows({("T03", "aggregate"): 0.5}, faults=faults))
    assert name == "aggregate value M115 + M07"


def test_what_follows_from_an_earlier_stage_is_no_departure():
    run = run_that_shows({("T01", "aggregate"): 0.5})
    (row,) = run.cases[0].comparisons
    run.cases[0].comparisons[0] = msgspec.structs.replace(row, inherits="log_probs")
    assert departures_of(run) == ()


def test_the_largest_value_of_a_case_and_stage_counts_also_where_json_holds_a_text():
    run = run_that_shows({("T01", "aggregate"): 0.5})
    (row,) = run.cases[0].comparisons
    run.cases[0].comparisons.append(msgspec.structs.replace(row, max_abs="inf"))
    (departure,) = departures_of(run)
    assert departure.size == "inf"


def test_a_case_that_failed_departs_and_is_not_judged():
    run = run_that_shows({}, holds=("T01",), fails=("T05",))
    assert [(d.case, d.effect) for d in departures_of(run)] == [("T05", "error")]
    assert judged_cases(run) == ("T01",)
