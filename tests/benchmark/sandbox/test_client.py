"""The harness notices a fork server that ended, and a machine that cannot isolate."""

import os
import signal

import pytest

from sdpo.benchmark.sandbox.cleanup import descendants
from sdpo.benchmark.sandbox.client import (
    ForkServer,
    IsolationError,
    Limits,
    ServerError,
    require_core,
)
from sdpo.benchmark.sandbox.confinement.confine import CORE_LAYERS


def test_a_server_that_ended_is_an_error() -> None:
    before = set(descendants(os.getpid()))
    server = ForkServer(Limits(memory=512))
    for process in set(descendants(os.getpid())) - before:
        os.kill(process, signal.SIGKILL)
    with pytest.raises(ServerError, match="a fork server"), server.session() as session:
        session.start("submission", 1)
    server.close()
    assert set(descendants(os.getpid())) == before


def test_every_core_layer_is_required() -> None:
    require_core([*CORE_LAYERS, "mount-namespace"])
    for missing in CORE_LAYERS:
        layers = [layer for layer in CORE_LAYERS if layer != missing]
        with pytest.raises(IsolationError, match=f"missing on this machine: {missing} "):
            require_core(layers)
