"""Whether this machine computes the bits of the recording.

torch's matrix products and exponentials are MKL's, which takes other kernels on other makes of
processors, whatever vector instructions torch itself is told to use.
"""

import torch

from sdpo.parity.environment import processor

RECORDING_STACK = (
    torch.__version__.split("+")[0] == "2.13.0"
    and torch.backends.cpu.get_cpu_capability() == "AVX2"
    and "AMD" in processor()
)
