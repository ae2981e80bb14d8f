"""The process that records, with its kernels chosen before torch was loaded."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from sdpo.fixtures import FAMILIES, GoldenDataError
from sdpo.parity.cases.failure import FAILED, described, refuse
from sdpo.parity.live_fork.checkout import (
    Checkout,
    CheckoutError,
    find_checkout,
    inspect_checkout,
)
from sdpo.parity.live_fork.modules import check_packages
from sdpo.parity.random_cases.compare_sides import compare_families
from sdpo.parity.random_cases.comparison_text import comparison_lines
from sdpo.parity.record.case_list import CaseListError, read_case_list
from sdpo.parity.record.check_recording import Found, check_packaged
from sdpo.parity.record.launch import Order
from sdpo.parity.record.make_inputs import recipes_of
from sdpo.parity.record.provenance import provenance
from sdpo.parity.record.recipes import Recording
from sdpo.parity.record.recorder import CaseRecorder
from sdpo.parity.record.write_recording import differences, write_recording
from sdpo.settings.determinism import deterministic

DIFFERENT = 1


def main(arguments: Sequence[str]) -> int:
    """Carry an order out, given as JSON; the exit code is that of `sdpo record`."""
    order = msgspec.json.decode(arguments[0], type=Order)
    try:
        checkout = ready_checkout(order)
        with deterministic():
            if order.random:
                return compare(order)
            return check() if not order.out else record(order, checkout)
    except (CheckoutError, CaseListError, GoldenDataError) as error:
        return refuse(str(error), as_json=False)
    except OSError as error:
        return refuse(f"nothing was recorded: {described(error)}", as_json=False)


def ready_checkout(order: Order) -> Checkout:
    """The checkout, whole and of the recorded commit, with what it needs installed.

    Raises:
        CheckoutError: it is not.
    """
    checkout = inspect_checkout(find_checkout(Path(order.checkout)))
    if not checkout.is_recorded_commit and not order.allow_modified and order.out:
        raise CheckoutError(
            f"{checkout.root}: {checkout.described()}: git -C {checkout.root} stash, or record it "
            "as it is with --allow-modified"
        )
    check_packages()
    return checkout


def record(order: Order, checkout: Checkout) -> int:
    """Record a list of cases; a folder that holds something else fails, and is kept.

    Raises:
        CaseListError: the list is unusable.
    """
    path, folder = Path(order.cases), Path(order.out)
    cases, recorder = read_case_list(path), CaseRecorder()
    recordings: dict[str, list[Recording]] = {}
    for recipe in recipes_of(cases, recorder.tokenizer if cases.reprompt else None):
        try:
            recordings.setdefault(recipe.family, []).append(recorder.record(recipe))
        except Exception as error:
            why = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise CaseListError(f"{path}: the fork refuses case {recipe.id}: {why}") from error
    recordings = {name: recordings[name] for name in FAMILIES if name in recordings}
    count = sum(map(len, recordings.values()))
    differing = differences(folder, recordings) if folder.exists() else []
    if folder.exists() and not differing:
        print(f"{folder}: {count} cases have the bits that are there")
        return 0
    if differing and not order.regenerate:
        print(*differing, sep="\n")
        print(f"{folder}: nothing was written; --force-regen replaces it")
        return DIFFERENT
    write_recording(folder, recordings, provenance(checkout), path.stem)
    print(*differing, sep="\n") if differing else None
    print(f"{folder}: {count} cases recorded, {checkout.described()}")
    # a recording that was replaced fails once, so that the change is looked at
    return DIFFERENT if differing else 0


def check() -> int:
    """Record the packaged cases again, and say what differs."""
    checked = check_packaged(progress())
    for family in FAMILIES:
        of_family = [entry for entry in checked if entry.family == family]
        counts = [(f, sum(entry.found == f for entry in of_family)) for f in Found]
        parts = [f"{count} {found.value}" for found, count in counts if count]
        print(f"{family}: of {len(of_family)} cases " + "; ".join(parts))
    different = [entry for entry in checked if entry.found == Found.DIFFERENT]
    for entry in different:
        print(f"{entry.case}: {entry.where}")
    return DIFFERENT if different else 0


def compare(order: Order) -> int:
    """Compare both sides on random cases, and say where they differ.

    Raises:
        CheckoutError: the checkout cannot be run.
    """
    different = False
    for comparison in compare_families(order.random, order.seed, progress()):
        print(*comparison_lines(comparison), sep="\n", flush=True)
        different |= bool(comparison.differences)
    return DIFFERENT if different else 0


def progress() -> Callable[[str, int, int], None]:
    """Tell a terminal how far it is; nothing elsewhere."""
    if not sys.stderr.isatty():
        return lambda *_: None

    def tell(family: str, done: int, total: int) -> None:
        end = "\n" if done == total else ""
        print(f"\r{family} {done}/{total} ", end=end, file=sys.stderr, flush=True)

    return tell


if __name__ == "__main__":
    try:
        code = main(sys.argv[1:])
    except KeyboardInterrupt:
        code = FAILED
    sys.exit(code)
