"""Random rows keep the rules, repeat, and are led by what was not shown."""

import random
from itertools import islice

from sdpo.parity.generated.factors import settings_of, table
from sdpo.parity.generated.random_rows import TELLING, exploring_rows, random_row


def test_random_rows_keep_the_rules_and_show_every_value():
    chance = random.Random(0)
    rows = [random_row(chance) for _ in range(300)]
    assert all(table().allows(row) for row in rows)
    for factor, values in table().factors.items():
        assert {row[factor] for row in rows} == set(values), factor


def test_the_same_seed_gives_the_same_rows():
    first, again, other = (list(islice(exploring_rows(seed), 5)) for seed in (1, 1, 2))
    assert first == again != other


def test_exploring_shows_more_sets_of_three_than_chance():
    chance = random.Random(0)

    def shown(rows):
        return len({each for row in rows for each in settings_of(row, 3)})

    unguided = [random_row(chance, telling=chance.random() < TELLING) for _ in range(60)]
    assert shown(islice(exploring_rows(0), 60)) > 1.01 * shown(unguided)
