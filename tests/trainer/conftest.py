"""Settings of all trainer tests: only our own warnings are errors."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent
THIRD_PARTY = (
    "ignore:.*is deprecated and will be removed in v6:FutureWarning",
    "ignore:.*pin_memory:UserWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            for rule in THIRD_PARTY:
                item.add_marker(pytest.mark.filterwarnings(rule))
