"""A recorded case is read once in a process, in whatever part of its family it is asked for."""

from dataclasses import replace
from pathlib import Path

from sdpo.fixtures import GoldenFamily, load_family, packaged_family
from sdpo.parity.cases.loss_case import loss_case, loss_cases


def part(family: GoldenFamily, first: int) -> GoldenFamily:
    return replace(family, manifest={"cases": family.manifest["cases"][first:]})


def test_parts_of_a_family_share_their_cases():
    family = packaged_family("loss")
    assert packaged_family("loss") is family
    whole, some = loss_cases(family), loss_cases(part(family, 100))
    assert [case.id for case in some] == [case.id for case in whole[100:]]
    assert all(one is other for one, other in zip(whole[100:], some, strict=True))


def test_another_reading_or_another_folder_is_another_case(tmp_path: Path):
    family = packaged_family("loss")
    again = load_family(family.folder, "loss")
    first, second = next(iter(family)), next(iter(again))
    assert loss_case(first) is not loss_case(second)
    (tmp_path / first.entry["file"]).write_bytes((family.folder / first.entry["file"]).read_bytes())
    moved = replace(first, folder=tmp_path)
    assert loss_case(moved) is not loss_case(first)
