"""A recorded case is prepared once in a process, in whatever part of its family it is asked for."""

import gc
import weakref
from dataclasses import replace
from pathlib import Path

from sdpo.fixtures import GoldenFamily, load_family, packaged_family
from sdpo.parity.compare.evaluated_case import loss_case, loss_cases, prepared


def part(family: GoldenFamily, first: int) -> GoldenFamily:
    return replace(family, manifest={"cases": family.manifest["cases"][first:]})


def test_parts_of_a_family_share_their_cases():
    family = packaged_family("loss")
    assert packaged_family("loss") is family
    whole, some = loss_cases(family), loss_cases(part(family, 100))
    assert [case.id for case in some] == [case.id for case in whole[100:]]
    assert all(one is other for one, other in zip(whole[100:], some, strict=True))
    assert prepared(some[0]).truth is prepared(whole[100]).truth


def test_another_reading_or_another_folder_is_another_case(tmp_path: Path):
    family = packaged_family("loss")
    again = load_family(family.folder, "loss")
    first, second = next(iter(family)), next(iter(again))
    assert loss_case(first) is not loss_case(second)
    (tmp_path / first.entry["file"]).write_bytes((family.folder / first.entry["file"]).read_bytes())
    moved = replace(first, folder=tmp_path)
    assert loss_case(moved) is not loss_case(first)


def test_what_was_prepared_goes_with_its_case():
    case = replace(loss_cases(packaged_family("loss"))[0], id="another")
    assert prepared(case) is prepared(case)
    assert prepared(replace(case)) is not prepared(case)
    kept = weakref.ref(prepared(case))
    del case
    gc.collect()
    assert kept() is None
