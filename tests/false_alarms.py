"""How often is a correct program blamed? `python tests/false_alarms.py --cases 10000`.

Runs generated cases, drawn at random, on the programs of `tests/helpers/correct_variants.py` and on
our own loss, by the path of an audit. Prints each failure and the count; exit code 1 if there are
any. `--case NAME` runs one case again, on all of them.
"""

import argparse
import random
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from sdpo.loss.self_distillation import self_distillation_loss
from sdpo.parity.audit.run_loss_cases import run_loss_case
from sdpo.parity.candidates.implementations import reference_loss
from sdpo.parity.candidates.loss_functions import FromLogits
from sdpo.parity.cases.loss_case import LossCase
from sdpo.parity.compare.statuses import FAILING
from sdpo.parity.faults.evaluate_fault import loss_from_logits
from sdpo.parity.generated.make_case import make_again, make_case
from sdpo.parity.generated.random_rows import random_row
from sdpo.settings.determinism import deterministic
from tests.helpers.correct_variants import VARIANTS, applies

PROGRAMS = {
    "reference": reference_loss,
    "own implementation": self_distillation_loss,
    **{name: loss_from_logits(parts) for name, parts in VARIANTS.items()},
}
CHUNK = 100

Failure = tuple[str, str, str, tuple[str, ...]]
"""Program, case, what is said of it, and the case's tags."""


def failures(case: LossCase, programs: list[str]) -> Iterator[Failure]:
    """The programs that are blamed on a case."""
    for name in programs:
        if name not in VARIANTS or applies(name, case):
            run = run_loss_case(FromLogits(name, PROGRAMS[name]), case)
            result, doubts = run.result, run.doubts
            if result.status in FAILING or doubts:
                stage = f"{result.first_stage}: {result.row()['note']}"
                yield name, case.id, doubts[0] if doubts else stage, case.tags


def chunk(seed: int, count: int, each: int) -> list[Failure]:
    """The failures of some random cases, each on `each` of the programs."""
    torch.set_num_threads(1)
    chance, found = random.Random(seed), []
    with deterministic(seed):
        for _ in range(count):
            case = make_case(random_row(chance), seed)
            found += failures(case, chance.sample(list(PROGRAMS), each))
    return found


def main() -> int:
    """Run the cases and print what is blamed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--programs", type=int, default=len(PROGRAMS), help="on each case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--case", help="the name of one case")
    options = parser.parse_args()
    if options.case:
        with deterministic(0):
            found = list(failures(make_again(options.case), list(PROGRAMS)))
        print(*found, sep="\n")
        return int(bool(found))
    seeds = range(options.seed, options.seed + -(-options.cases // CHUNK))
    counts = [min(CHUNK, options.cases - CHUNK * place) for place in range(len(seeds))]
    blamed: Counter[str] = Counter()
    with ProcessPoolExecutor(options.processes) as pool:
        for found in pool.map(chunk, seeds, counts, [options.programs] * len(seeds)):
            for failure in found:
                print(*failure, flush=True)
            blamed.update(name for name, *_ in found)
    runs = options.cases * options.programs
    print(f"{blamed.total()} of {runs} runs of correct programs blamed, on {options.cases} cases")
    print(*(f"  {name}: {count}" for name, count in blamed.most_common()), sep="\n")
    return int(blamed.total() > 0)


if __name__ == "__main__":
    sys.exit(main())
