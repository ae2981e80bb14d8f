"""The search for a smaller case, on numbers."""

from collections.abc import Generator

from sdpo.parity.bundles.shrink import shrink


def one_less(number: int) -> Generator[int, bool, None]:
    """Half of a number as long as that is kept, then one less."""
    for smaller in (lambda n: n // 2, lambda n: n - 1):
        while number > 1 and (yield smaller(number)):
            number = smaller(number)


def search(number, least, most_tries=100):
    return shrink(number, one_less(number), lambda n: n >= least, most_tries)


def test_the_smallest_number_that_fails_is_found_and_the_tries_are_counted():
    assert search(40, 7) == (7, 7)  # 20, 10, 5: no; 9, 8, 7, 6: no


def test_nothing_that_does_not_fail_is_kept():
    assert search(40, 40) == (40, 2)  # 20: no; 39: no


def test_the_number_of_tries_is_bounded():
    assert search(40, 7, most_tries=4) == (9, 4)
    assert search(40, 7, most_tries=0) == (40, 0)


def test_a_case_without_smaller_ones_is_not_tried():
    assert search(1, 0) == (1, 0)
