"""The loop that faults happen to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.faulty_loop import Loop


@pytest.fixture(scope="module")
def loop(request: pytest.FixtureRequest, redis_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    """Of the feed config that the module names LOOP_CONFIG, if it does."""
    from tests.e2e.faulty_loop import CONFIG, Loop  # TensorFlow: not for the tests beside these

    folder = tmp_path_factory.mktemp("loop")
    loop = Loop(folder, redis_binary, getattr(request.module, "LOOP_CONFIG", CONFIG))
    try:
        loop.start()
        yield loop
    finally:
        loop.stop()
