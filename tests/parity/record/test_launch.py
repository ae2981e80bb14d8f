"""The process that records: its kernels, and the order that it is sent."""

import subprocess

import msgspec

from sdpo.fixtures import PACKAGED
from sdpo.parity.record.launch import KERNELS, Order, carry_out, packaged_list, with_kernels


def test_the_packaged_list_is_the_one_beside_the_supplement():
    assert packaged_list().samefile(PACKAGED.parent / "supplement.toml")


def test_kernels_replace_those_of_the_environment():
    own = with_kernels({"ATEN_CPU_CAPABILITY": "avx512", "HOME": "/h"})
    assert own == {"HOME": "/h", **KERNELS}
    assert own["MKL_CBWR"] == "COMPATIBLE"


def test_the_order_arrives_as_it_was_given_and_the_exit_code_comes_back(monkeypatch):
    seen = []

    def run(command, **options):
        seen.append((msgspec.json.decode(command[-1], type=Order), options["env"]))
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(subprocess, "run", run)
    order = Order("SDPO", "cases.toml", random=5, seed=7)
    assert carry_out(order) == 3
    ((arrived, environment),) = seen
    assert arrived == order
    assert KERNELS.items() <= environment.items()
