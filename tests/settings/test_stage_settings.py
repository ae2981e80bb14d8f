"""The plain settings of loss and prompt are those of a configuration."""

from dataclasses import FrozenInstanceError, fields

import pytest

from sdpo.parity.cases.loss_case import LOSS_SETTINGS
from sdpo.parity.cases.value_names import PROMPT_SETTINGS
from sdpo.settings.config import SDPOConfig
from sdpo.settings.stage_settings import LossSettings, PromptSettings


@pytest.mark.parametrize(
    ("kind", "names"), [(LossSettings, LOSS_SETTINGS), (PromptSettings, PROMPT_SETTINGS)]
)
def test_a_configuration_has_each_setting_at_the_same_default(kind, names):
    plain, config = kind(), SDPOConfig()
    assert isinstance(config, kind)
    assert tuple(field.name for field in fields(kind)) == names
    assert all(getattr(config, name) == getattr(plain, name) for name in names)


def test_settings_do_not_change():
    with pytest.raises(FrozenInstanceError):
        LossSettings().alpha = 1.0  # pyright: ignore[reportAttributeAccessIssue]
