"""What code of others changes of the process is put back."""

import os
from pathlib import Path

import pytest
import torch

from sdpo.runtime.process_state import state_kept


def test_dtype_modes_threads_and_folder_are_put_back(tmp_path):
    before = (
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        Path.cwd(),
    )

    def changes_all():
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(torch.get_num_threads() + 1)
        torch.set_grad_enabled(False)
        torch.use_deterministic_algorithms(not before[3])
        os.chdir(tmp_path)
        raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"), state_kept():
        changes_all()
    assert before == (
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        Path.cwd(),
    )
