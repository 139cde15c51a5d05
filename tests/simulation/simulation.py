"""One run: random things happen, with a rest now and then, and what must be true is checked all along."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable

from tests.simulation import clock
from tests.simulation.chaos import Chaos
from tests.simulation.clock import VirtualLoop
from tests.simulation.invariants import always, at_rest, in_time
from tests.simulation.site import Complaints, Site

_LONGEST = 1_000.0  # seconds until everything must be at rest; an installation may take 900
_EVERY = 1.0  # seconds between looks whether it is

Build = Callable[[VirtualLoop], Site]


def simulate(seed: int, steps: int, *, rest_every: int = 50, build: Build = Site) -> Site:
    """Let so many random things happen. Raises AssertionError that says the seed and the last that happened."""
    made: list[Site] = []

    async def main(loop: VirtualLoop) -> None:
        site = build(loop)
        made.append(site)
        complaints = Complaints(site)
        logger = logging.getLogger("aima")
        logger.addHandler(complaints)
        before, logger.propagate, level = logger.propagate, False, logger.level
        logger.setLevel(logging.ERROR)
        try:
            await _go(site, steps, rest_every)
        finally:
            logger.removeHandler(complaints)
            logger.propagate = before
            logger.setLevel(level)

    try:
        clock.run(seed, main)
    except Exception as error:
        at = f"seed {seed}, step {made[0].steps}:\n{made[0].transcript()}" if made else f"seed {seed}"
        raise AssertionError(f"{type(error).__name__}: {error}\n{at}") from error
    finally:
        for site in made:
            site.disk.close()
    return made[0]


async def _go(site: Site, steps: int, rest_every: int) -> None:
    await site.begin()
    chaos, site.check = Chaos(site), always
    for number in range(1, steps + 1):
        site.steps = number
        await chaos.step()
        always(site)
        if number % rest_every == 0:
            await rest(site)


async def rest(site: Site) -> None:
    """Let the site come to rest, first with the programs that do not let themselves be killed, then without."""
    site.tell("rest", "")
    site.machine.kind, site.bus.loss, site.deadly = True, 0.0, 0.0
    stuck = [program for program in site.machine.programs.values() if program.stuck]
    for owner in dict.fromkeys(program.notes["service"] for program in stuck):
        site.callers.ask("service.stop", service_id=owner or "svc-none")  # which comes to its end by its deadline only
    await _until(site, in_time)
    for program in site.machine.programs.values():
        program.stuck = False
    await _until(site, at_rest)


async def _until(site: Site, check: Callable[[Site], None]) -> None:
    """Return when something is so; whatever has ended is started again at once."""
    until = site.loop.now + _LONGEST
    while True:
        await site.begin()
        always(site)
        try:
            check(site)
        except AssertionError as error:
            if site.loop.now >= until:
                raise AssertionError(f"not at rest after {_LONGEST:g} s: {error}") from None
        else:
            return
        await asyncio.sleep(_EVERY)


if __name__ == "__main__":
    simulate(int(sys.argv[1]), int(sys.argv[2]))
