"""`python -m lab bench kills`: every command that writes, killed with SIGKILL, then given again.

Afterwards there must be what an uninterrupted call leaves, file by file, and nothing else: no hidden temporary, no
lock, no partial folder. Half of the kills come at a random moment, half right before a random operation on files, where
most can go wrong. Commands run in forks of one process that has imported all they need, in copies of one folder
(kill_world.py).
"""

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from channelvq.errors import InputError
from channelvq.evaluate.results import write_json
from channelvq.evaluate.tables import TextTable
from lab.bench.kill_world import COMMANDS, SLOW, compared, import_all, make_world
from lab.bench.timing import machine
from lab.results import others
from lab.study import Tables

PATIENCE = 2.2  # seconds after which what a killed writer left is no longer taken for young (channelvq.files.YOUNG)
LONGEST = 300.0  # seconds of a command
TRIES = 10  # to kill a command before it has ended
# Operations that change files, by the names of their audit events; of "open" those for writing.
CHANGES = {"os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}


@dataclass
class Ended:
    """How a command ended: its exit code, minus the signal's number if it was killed; its seconds and output."""

    code: int
    seconds: float
    text: str = ""
    changes: int = 0  # operations on files


@dataclass
class Record:
    """What came of one command's kills; faults: where something was lost, left over or refused, in words."""

    command: str
    moments: int = 0
    operations: int = 0
    equal: int = 0
    swept: int = 0
    faults: list[str] = field(default_factory=list)


def _watch(world: Path, note: Path, kill_at: int | None) -> None:
    """Count operations on files below `world`, and kill this process right before number `kill_at`."""
    count, me, root = 0, os.getpid(), str(world)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if os.getpid() != me or (event not in CHANGES and event != "open"):
            return
        path = arguments[0]
        writes = event != "open" or (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR))
        inside = isinstance(path, str | Path) and os.path.abspath(path).startswith(root)
        if writes and inside and not os.path.abspath(path).startswith(str(note)):
            count += 1
            if count == kill_at:
                os.kill(me, signal.SIGKILL)
            os.pwrite(counted, str(count).encode(), 0)

    counted = os.open(note, os.O_WRONLY | os.O_CREAT)
    sys.addaudithook(hook)


def _child(words: list[str], world: Path, log: Path, note: Path, kill_at: int | None) -> None:
    """The command in this process; never returns."""
    code = 1
    try:
        os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream, place in ((0, os.open(os.devnull, os.O_RDONLY)), (1, out), (2, out)):
            os.dup2(place, stream)
        os.chdir(world)
        for name, folder in (("CHANNELVQ_CACHE", "cache"), ("HOME", "home"), ("TMPDIR", "tmp")):
            os.environ[name] = str(world / folder)
        tempfile.tempdir = None
        from channelvq.cli import main

        sys.argv = ["cvq", *words]
        _watch(world, note, kill_at)
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def call(words: list[str], world: Path, *, kill_after: float | None = None, kill_at: int | None = None) -> Ended:
    """Run a command in `world`; kill_after: seconds until it is killed. kill_at: before which operation on files."""
    log, note = world.with_suffix(".log"), world.with_suffix(".count")
    note.unlink(missing_ok=True)
    log.write_text("")  # a child may be killed before it opens it
    began = time.monotonic()
    if not (pid := os.fork()):
        _child(words, world, log, note, kill_at)
    end = began + (LONGEST if kill_after is None else kill_after)
    while not (done := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() >= end:
            with suppress(ProcessLookupError):  # it leads no group yet
                os.killpg(pid, signal.SIGKILL)
            os.kill(pid, signal.SIGKILL)
            done = os.waitpid(pid, 0)
            break
        time.sleep(0.002)
    seconds = time.monotonic() - began
    count = int(note.read_text() or 0) if note.exists() else 0
    return Ended(os.waitstatus_to_exitcode(done[1]), seconds, log.read_text(errors="replace"), count)


def _killed(words: list[str], fresh: Callable[[], Path], whole: Ended, draw: random.Random, by_moment: bool) -> Path:
    """A world in which the command was killed; InputError where it always ended before."""
    for _ in range(TRIES):
        world = fresh()
        if by_moment:
            ended = call(words, world, kill_after=draw.uniform(0, whole.seconds))
        else:
            ended = call(words, world, kill_at=draw.randint(1, whole.changes))
        if ended.code == -signal.SIGKILL:
            return world
    raise InputError(f"{' '.join(words)}: it ended before it was killed, {TRIES} times")


def drill(name: str, words: list[str], base: Path, kills: int, draw: random.Random) -> Record:
    """Kill a command so many times and give it again each time."""
    record, number = Record(name), 0

    def fresh() -> Path:
        nonlocal number
        number += 1
        world = base.with_name("trials") / f"w{number % 2}" / "world"  # of one name: it may be in what is written
        shutil.rmtree(world.parent, ignore_errors=True)
        shutil.copytree(base, world)
        return world

    call(words, fresh())  # what a process does only once is done
    world = fresh()
    whole = call(words, world)
    if whole.code:
        raise InputError(f"{name}: it ended with {whole.code} by itself:\n{whole.text[-2000:]}")
    wanted = compared(world)
    for i in range(kills):
        world = _killed(words, fresh, whole, draw, by_moment=i % 2 == 0)
        time.sleep(PATIENCE)
        again = call(words, world)
        found = compared(world)
        other = sorted(path for path in wanted if found.get(path) != wanted[path])
        left = sorted(path for path in found if path not in wanted)
        record.moments, record.operations = record.moments + (i % 2 == 0), record.operations + i % 2
        record.equal, record.swept = record.equal + (not other and not again.code), record.swept + (not left)
        if again.code:
            record.faults.append(f"ended with {again.code}: {again.text[-300:]}")
        if other or left:
            record.faults.append(f"other or missing: {', '.join(other[:5])}; left over: {', '.join(left[:5])}")
    return record


def run(kills: int, path: Path | None, only: list[str] | None = None) -> dict[str, Any]:
    """At least `kills` kills, shared out among the commands; those that take minutes get a third.

    only: these of them, as many kills each; what is stored of the others stays.
    """
    import_all()
    names = only or list(COMMANDS)
    each = -(-3 * kills // sum(1 if name in SLOW else 3 for name in COMMANDS))
    result: dict[str, Any] = {
        "protocol": machine() | {
            "kills": "SIGKILL, in turns at a uniformly random moment and right before a random operation on files",
            "equal": "after the command was given again: every file as an uninterrupted call leaves it, but for times",
            "swept": "and no file or folder beside those", "seed": 0,
        },
        "records": [],
    }  # fmt: skip
    if only and path is not None and path.is_file():
        result["records"] = others(path, "command", only)
    with tempfile.TemporaryDirectory() as folder:
        base = make_world(Path(folder) / "base")
        for name in names:
            record = drill(name, COMMANDS[name], base, -(-each // 3) if name in SLOW else each, random.Random(name))
            print(record, flush=True)
            result["records"].append(vars(record) | {"git": result["protocol"]["git"]})
            result["records"].sort(key=lambda row: [*COMMANDS].index(row["command"]))
            if path is not None:
                write_json(path, result)
    return result


def shown(result: dict[str, Any]) -> TextTable:
    """A row a command, and all together."""
    columns = ("moments", "operations", "equal", "swept")
    rows = [[row["command"], *(str(int(row[key])) for key in columns)] for row in result["records"]]
    rows.append(["all", *(str(sum(row[key] for row in result["records"])) for key in columns)])
    headings = ("command", "killed at a moment", "before an operation on files", "then equal", "nothing left over")
    return TextTable(headings, rows, note=f"{result['protocol']['kills']}. Then the same command was given again.")


TABLES: Tables = {"kills": ("kills.json", shown)}
