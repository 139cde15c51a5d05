"""The machine below the engine domain: memory, ports and programs, which load, hang, crash and outlive their parent."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

from aima_core.call import timestamp
from aima_core.errors import ExecutionFailed, Unavailable
from services.engine.manifests.manifest_schema import Manifest
from services.engine.runtimes import START_LINE, Handle, Handles, LaunchSpec, Lines, Stats
from services.resource.rules.capacity import Facts
from tests.simulation.clock import VirtualLoop
from tests.simulation.life import Life
from tests.simulation.models import NEEDS

GIB = 2**30
OUT_OF_MEMORY = "out of memory"

_KILLED = 5.0  # seconds until a program that was killed must be gone
_KILL, _TERM = -9, -15  # exit codes, as Python tells of signals


@dataclass(eq=False)
class Program:
    """A program. It answers from `ready_at`, dies by itself at `dies_at`, both in seconds of the loop."""

    handle: Handle
    notes: dict[str, str]
    port: int
    memory: int
    parent: Life | None
    ready_at: float
    dies_at: float = inf
    last_words: str = ""
    lingers: float = 0.1
    """Seconds that it takes to end when it is asked to."""
    frozen: bool = False
    stuck: bool = False
    """Not even killing ends it."""
    asked: bool = False
    exit_code: int = 0
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def instance(self) -> str:
        """Whose program it is."""
        return self.handle.instance

    @property
    def run(self) -> int:
        """Which run of the instance it is."""
        return int(self.notes["run"])


class Machine:
    """What there is of memory, ports and programs. `kind`: every new program does well."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.loop, self.rng = loop, loop.rng
        self.kind = False
        self.memory, self.taken, self.boot = self.rng.choice((12, 16, 30, 30)) * GIB, 0, 1
        self.programs: dict[str, Program] = {}
        self.logs: dict[str, list[str]] = {}
        self.packages: dict[str, str] = {}
        self._pids = 0

    @property
    def available(self) -> int:
        """Bytes that the system could give now; `taken` is memory that others use."""
        return max(0, self.memory - self.taken - sum(program.memory for program in self.programs.values()))

    def facts(self, _: Path) -> Facts:
        """Return what the resource domain reads of the machine."""
        return Facts(self.memory, self.available, 10 * self.memory, 5 * self.memory)

    def free_ports(self, _: str, candidates: Iterable[int]) -> list[int]:
        """Return the ports that nobody listens on."""
        held = {program.port for program in self.programs.values() if program.ready_at <= self.loop.now}
        return [port for port in candidates if port not in held]

    def start(self, spec: LaunchSpec, parent: Life) -> Program:
        """Return the instance's living program, or a new one. Raises ExecutionFailed."""
        if spec.instance in self.programs:
            return self.programs[spec.instance]
        ill = 0.0 if self.kind else self.rng.random()
        if ill > 0.97:
            raise ExecutionFailed("cannot start toy: no such file", reason="LAUNCH_FAILED")
        self._pids += 1
        arguments = dict(argument.removeprefix("--").split("=") for argument in spec.argv[1:])
        program = Program(
            Handle(spec.instance, self._pids, self.loop.wall()),
            spec.notes,
            int(arguments["port"]),
            NEEDS[arguments["model"]].memory * self.rng.choice((80, 95, 100, 110)) // 100,
            parent,
            self.loop.now + self.rng.choice((0.1, 1, 4, 20)),
        )
        self._afflict(program, ill)
        self.programs[spec.instance] = program
        start = f"{START_LINE}{spec.instance} at {timestamp(self.loop.wall())}"
        self.logs.setdefault(spec.instance, []).append(start)
        return program

    def _afflict(self, program: Program, ill: float) -> None:
        """Let a program be one that dies, or hangs, or is slow to end."""
        if not self.kind:
            program.lingers = self.rng.choice((0.1, 0.1, 2, 60))
        if ill > 0.75:
            program.dies_at = self.loop.now + self.rng.choice((0.05, 2, 40))
            words = self.rng.choice(("", "", OUT_OF_MEMORY))
            self.loop.call_at(program.dies_at, lambda: None if program.frozen else self.end(program, 1, words))
        elif ill > 0.70:
            program.ready_at = inf

    def end(self, program: Program, exit_code: int, words: str = "") -> None:
        """Let a program be gone, with its last words in its log."""
        if self.programs.get(program.instance) is program:
            del self.programs[program.instance]
            program.exit_code = exit_code
            self.logs[program.instance] += [words] if words else []
            program.gone.set()

    def ask_to_end(self, program: Program) -> None:
        """Ask a program to end; one that is frozen does not hear of it before it is thawed."""
        program.asked = True
        if not program.frozen and not program.stuck:
            self.loop.call_later(program.lingers, lambda: self.end(program, _TERM))

    def kill(self, program: Program) -> None:
        """Kill a program; a stuck one survives."""
        if not program.stuck:
            self.end(program, _KILL)

    def thaw(self, program: Program) -> None:
        """Let a program go on; what it was asked meanwhile, or should have done, it does now."""
        program.frozen = program.stuck = False
        if program.asked:
            self.ask_to_end(program)
        elif program.dies_at <= self.loop.now:
            self.end(program, 1)

    def reboot(self) -> None:
        """Lose all programs."""
        self.boot += 1
        for program in list(self.programs.values()):
            self.end(program, _KILL)

    def listener(self, endpoint: str) -> Program | None:
        """Return the program that listens at a URL."""
        port = int(endpoint.rpartition(":")[2])
        return next((one for one in self.programs.values() if one.port == port and one.ready_at <= self.loop.now), None)

    async def healthy(self, endpoint: str, _: str, timeout: float) -> bool:
        """Tell whether an engine answers; one that is frozen says nothing."""
        program = self.listener(endpoint)
        if program and program.frozen:
            await asyncio.sleep(timeout)
        return program is not None and not program.frozen

    async def served_model(self, _: str, fallback: str) -> str:
        """Return the name that the engine has for its model."""
        return fallback


class SimulatedRuntime:
    """The runtime of one life of the engine domain's process; the programs outlive it."""

    def __init__(self, machine: Machine, life: Life) -> None:
        self._machine, self._life = machine, life

    async def start(self, spec: LaunchSpec) -> Handle:
        """Return the instance's living program; start it only when there is none."""
        return (await asyncio.to_thread(self._machine.start, spec, self._life)).handle

    async def find(self, instance: str) -> Handle | None:
        """Return the instance's living program."""
        program = (await asyncio.to_thread(self._living)).get(instance)
        return program.handle if program else None

    async def list(self) -> Handles:
        """Return every living instance."""
        return [program.handle for _, program in sorted((await asyncio.to_thread(self._living)).items())]

    async def notes(self, handle: Handle) -> dict[str, str]:
        """Return the notes that the program was started with."""
        program = await asyncio.to_thread(self._program, handle)
        return dict(program.notes) if program else {}

    async def wait(self, handle: Handle) -> int | None:
        """Return when the program has died: its exit code, None when it is no child of ours."""
        program = await asyncio.to_thread(self._program, handle)
        if program is None:
            return None
        await program.gone.wait()
        self._life.check()
        return program.exit_code if program.parent is self._life else None

    async def stop(self, handle: Handle, timeout: float, force: bool) -> int | None:
        """End the program: asked first, made to after `timeout` seconds."""
        program = await asyncio.to_thread(self._program, handle)
        if program is None:
            return None
        if not force:
            self._machine.ask_to_end(program)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(program.gone.wait(), timeout)
        if not program.gone.is_set():
            await asyncio.to_thread(self._machine.kill, program)
        if not program.gone.is_set():
            await asyncio.sleep(_KILLED)
            raise ExecutionFailed(f"{handle.instance} does not end", reason="STOP_FAILED")
        return program.exit_code if program.parent is self._life else None

    def logs(self, instance: str, tail: int) -> Lines:
        """Return the last lines that the instance wrote."""
        return self._machine.logs.get(instance, [])[-tail:]

    async def stats(self, handle: Handle) -> Stats:
        """Return what the program uses now."""
        program = await asyncio.to_thread(self._program, handle)
        return Stats(program.memory if program else 0, 0.0)

    async def rotate(self) -> None:
        """Logs in memory need no care."""

    def _living(self) -> dict[str, Program]:
        return dict(self._machine.programs)

    def _program(self, handle: Handle) -> Program | None:
        program = self._machine.programs.get(handle.instance)
        return program if program and program.handle == handle else None


class SimulatedPackage:
    """An engine's package; one without a module needs none."""

    def __init__(self, machine: Machine, manifest: Manifest) -> None:
        self._machine, self._manifest = machine, manifest

    def find(self) -> tuple[str, str] | None:
        """Return path and version of the package, None when it is missing."""
        if self._manifest.module is None:
            return "", self._manifest.version
        version = self._machine.packages.get(self._manifest.name)
        return ("/packages", version) if version else None

    def environment(self) -> dict[str, str]:
        """Return what a process of the engine needs."""
        return {}

    async def install(self, version: str) -> tuple[str, str]:
        """Install; it takes its time, and now and then too much of it. Raises Unavailable."""
        await asyncio.sleep(self._machine.rng.choice((1, 20, 2_000)))
        if not self._machine.kind and self._machine.rng.random() < 0.2:
            raise Unavailable("pip did not end in time", reason="INSTALL_TIMEOUT")
        self._machine.packages[self._manifest.name] = version or self._manifest.version
        return "/packages", version or self._manifest.version
