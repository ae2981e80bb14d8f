"""Which values go together: rules by hand, and each pair that they allow stands in some row."""

from sdpo.parity.generated.factors import (
    Rule,
    Setting,
    possible_pairs,
    settings_of,
    table,
)


def completed(fixed):
    """The plainest row with some values fixed; None if no row keeps the rules with these."""
    if not table().allows(fixed):
        return None
    free = next((factor for factor in table().factors if factor not in fixed), None)
    if free is None:
        return fixed
    tries = (completed({**fixed, free: value}) for value in table().factors[free])
    return next((row for row in tries if row is not None), None)


def test_a_rule_holds_where_it_does_not_apply_and_where_values_are_missing():
    rule = Rule(when={"a": [1]}, then={"b": [2, 3]})
    assert rule.allows({"a": 1, "b": 3})
    assert rule.allows({"a": 0, "b": 9})
    assert rule.allows({"a": 1})
    assert not rule.allows({"a": 1, "b": 9})


def test_rules_speak_of_values_that_the_table_has():
    known = table().factors
    for rule in table().rules:
        for factor, values in [*rule.when.items(), *rule.then.items()]:
            assert set(values) <= set(known[factor]), (factor, values)
    for together in table().together:
        assert table().allows(together), together
        assert all(value in known[factor] for factor, value in together.items()), together


def test_settings_of_a_row_are_all_its_pairs():
    row = {factor: values[0] for factor, values in table().factors.items()}
    pairs = list(settings_of(row))
    assert len(pairs) == len(row) * (len(row) - 1) // 2
    assert (Setting("rows", 2), Setting("tokens", 5)) in pairs


def test_every_pair_that_the_rules_allow_stands_in_a_row_that_keeps_all_of_them():
    for one, other in possible_pairs():
        row = completed(dict((one, other)))
        assert row is not None, (one, other)
        assert table().allows(row)
