"""Settings of all trainer tests: only our own warnings are errors."""

from collections.abc import Generator
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
THIRD_PARTY = (
    "ignore:.*is deprecated and will be removed in v6:FutureWarning",
    "ignore:.*pin_memory:UserWarning",
)


@pytest.fixture(autouse=True, scope="session")
def packages_are_looked_up_once() -> Generator[None]:
    """Accelerate reads the metadata of PEFT several times a step: a twentieth of these tests."""
    from accelerate.utils import imports

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(imports, "_is_package_available", cache(imports._is_package_available))
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            for rule in THIRD_PARTY:
                item.add_marker(pytest.mark.filterwarnings(rule))
