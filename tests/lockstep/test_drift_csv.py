"""Rows of an audited training, in memory and on the disk."""

from sdpo.lockstep.drift_csv import COLUMNS, RowFile, check_row, logged, unchecked_row
from sdpo.lockstep.update_distances import Delta

FOUND = [
    Delta("aggregate", "aggregate", 1e-6),
    Delta("accumulate", "gradient", 3e-6, step=0),
    Delta("accumulate", "gradient", 2e-6, step=1),
    Delta("optimizer", "weights", 0.5, step=1),
    Delta("teacher_update", "teacher", 0.0),
]
ALLOWED = {"aggregate": 1e-5, "gradient": 1e-5, "weights": 0.1, "teacher": 0.1}


def test_the_largest_distance_of_a_kind_stands_beside_its_budget():
    row = check_row(4, [2.0, 1.5], 0.9, FOUND, ALLOWED, None)
    assert (row["gradient_relative"], row["gradient_budget"]) == (3e-6, 1e-5)
    assert (row["loss"], row["reference_loss"], row["delta_loss"]) == (2.0, 1.5, 0.5)
    assert (row["verdict"], row["first_moved"]) == ("PASS", "")


def test_the_first_distance_beyond_its_budget_is_named():
    row = check_row(4, [2.0, 1.5], 0.9, FOUND, ALLOWED, FOUND[3])
    named = [row[name] for name in ("verdict", "first_moved", "first_value", "first_step")]
    assert named == ["DIVERGENT", "optimizer", "weights", 1]


def test_a_budget_that_shows_no_factor_of_two_is_inconclusive():
    row = check_row(4, [2.0, 1.5], 0.9, FOUND, ALLOWED | {"weights": 0.6}, None)
    assert row["verdict"] == "INCONCLUSIVE"
    assert "weights by 0.6" in str(row["reason"])


def test_the_log_has_numbers_only_and_the_stages_number():
    row = check_row(4, [2.0, 1.5], 0.9, FOUND, ALLOWED, FOUND[3])
    numbers = logged(row | {"seconds": 1.0})
    assert numbers["first_moved"] == 15
    assert numbers["inconclusive"] == 0.0
    assert "seconds" not in numbers
    assert all(isinstance(value, (int, float)) for value in numbers.values())


def test_an_update_that_was_not_checked_has_all_columns():
    assert tuple(unchecked_row(3)) == COLUMNS


def test_a_resumed_file_drops_the_rows_behind_the_checkpoint(tmp_path):
    file = RowFile(tmp_path / "rows.csv")
    for step in (1, 2, 3):
        file.append({"step": step, "weights": step / 4, "note": "text"})
    again = RowFile(tmp_path / "rows.csv")
    again.resume(2)
    assert again.rows == [
        {"step": 1, "weights": 0.25, "note": "text"},
        {"step": 2, "weights": 0.5, "note": "text"},
    ]
    assert [row["step"] for row in again.read()] == ["1", "2"]
    again.resume(0)
    assert again.read() == []
