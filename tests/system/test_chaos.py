"""A short chaos run; `make chaos` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system import chaos


@pytest.mark.timeout(600)
async def test_nothing_is_lost_orphaned_or_hung_while_everything_is_killed_at_random(
    tmp_path: Path, smollm2: Path
) -> None:
    figures = await chaos.run(tmp_path / "data", smollm2, seconds=10, seed=3, pause=(0.5, 1.0), deadline=8)
    assert sum(figures.kills.values()) > 0
    assert figures.acknowledged
