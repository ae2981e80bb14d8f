"""The process that describes one checkout; it prints a `CheckoutDescription` as JSON."""

import sys
from pathlib import Path

import msgspec

from sdpo.fixtures import packaged_family
from sdpo.parity.cases.failure import refuse
from sdpo.parity.checkouts.description import CheckoutDescription
from sdpo.parity.checkouts.recorded_functions import run_checks
from sdpo.parity.checkouts.settings_of import COMPARED, layers_of
from sdpo.parity.live_fork.checkout import CheckoutError, find_verl, inspect_checkout
from sdpo.parity.live_fork.modules import check_packages
from sdpo.settings.determinism import deterministic


def describe(folder: Path) -> CheckoutDescription:
    """Describe a checkout.

    Raises:
        CheckoutError: there is none, or it cannot be run.
    """
    root = find_verl(folder)
    check_packages()
    layers = layers_of(root)
    with deterministic():
        functions = run_checks(packaged_family("loss"))
    version = (root / "verl" / "version" / "version").read_text("utf-8").strip()
    return CheckoutDescription(
        folder.name,
        inspect_checkout(root).described(),
        version,
        set(COMPARED) <= layers.keys(),
        layers,
        functions,
    )


if __name__ == "__main__":
    try:
        described = describe(Path(sys.argv[1]))
    except CheckoutError as error:
        sys.exit(refuse(str(error), as_json=False))
    sys.stdout.write(msgspec.json.encode(described).decode())
