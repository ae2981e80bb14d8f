"""What tests that train share."""

from collections.abc import Generator
from functools import cache

import pytest


@pytest.fixture(scope="session")
def packages_are_looked_up_once() -> Generator[None]:
    """Accelerate reads the metadata of PEFT several times a step: a twentieth of these tests."""
    from accelerate.utils import imports

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imports, "_is_package_available", cache(imports._is_package_available))
        yield
