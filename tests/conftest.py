"""Fixtures and marks shared by all tests."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(config, items):
    """Deselects the tests of the reference data where a checkout stands alone."""
    if SHARED.is_dir():
        return
    absent = [item for item in items if item.get_closest_marker("shared")]
    config.hook.pytest_deselected(items=absent)
    items[:] = [item for item in items if not item.get_closest_marker("shared")]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference data beside the checkout; only for tests marked `shared`."""
    assert SHARED.is_dir(), "mark this test `shared`: it reads the reference data"
    return SHARED
