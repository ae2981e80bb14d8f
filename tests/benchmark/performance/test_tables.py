"""Options by their defaults, and summaries of rounds."""

import pandas as pd

from sdpo.benchmark.performance.tables import median_and_range, options, write_table


def test_options_take_the_types_of_their_defaults():
    parser = options("First line.\nMore.", steps=4, rate=[0.5])
    assert parser.description == "First line."
    chosen = parser.parse_args(["--rate", "1", "2"])
    assert (chosen.steps, chosen.rate) == (4, [1.0, 2.0])


def test_rounds_are_summarized_by_median_smallest_and_largest():
    assert median_and_range(pd.Series([3.0, 1.0, 2.0])) == "2.00 (1.00 to 3.00)"


def test_a_table_says_what_measured_under_which_load_and_how_often(tmp_path, capsys):
    rows = pd.DataFrame({"seconds": [1.0, 2.0], "load": [0.5, 1.5], "round": [0, 1]})
    write_table(tmp_path / "x", rows, pd.DataFrame({"name": ["ours"], "s": [1.5]}), "some CPU")
    text = (tmp_path / "x.md").read_text()
    head = "some CPU; load average 0.5 to 1.5; median (smallest to largest) of 2"
    assert text == f"{head}\n\n| name | s |\n|---|---|\n| ours | 1.5 |\n"
    assert capsys.readouterr().out.startswith(text)
    assert len((tmp_path / "x.csv").read_text().splitlines()) == 3
