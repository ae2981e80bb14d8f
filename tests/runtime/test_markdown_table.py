"""A table in Markdown, with its alignment."""

from sdpo.runtime.markdown_table import markdown_table


def test_names_are_aligned_to_the_left_and_numbers_to_the_right():
    table = markdown_table(["name", "n"], [("a", 1), ("b", 2)])
    assert table == "| name | n |\n|---|--:|\n| a | 1 |\n| b | 2 |"


def test_a_table_without_rows_has_its_head():
    assert markdown_table(["a", "b", "c"], [], left=2) == "| a | b | c |\n|---|---|--:|"
