"""`python -m lab bench bulk`: many small images by `cvq data tokenize --engine ray`, killed and begun again.

The pictures are made, in tar shards in a temporary folder; the tokenizer is a fresh small one, whose work is little, so
that what the engine adds shows. Processor time is that of the command and of all processes below it, Ray's own too,
between its first and its last shard: it hardly changes when the machine does other work too. Time on the clock does, so
beside the gain of a second worker stands that of a second plain loop, which shares nothing with the first.
"""

import io
import multiprocessing
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image
from torch import Tensor

from channelvq.data.files.token_shards import read_manifest, read_token_folder
from channelvq.errors import InputError
from channelvq.evaluate.results import write_json
from channelvq.evaluate.tables import TextTable
from channelvq.images import normalize, resize_crop, to_tensor
from channelvq.nn.conv import ConvConfig
from channelvq.quantize.codebook import PlainConfig
from channelvq.tokenizer import CVQConfig, CVQTokenizer
from lab.bench.timing import machine
from lab.study import Tables

SHARD, SIDE, BATCH = 1000, 32, 64
FEW, TURNS = 3, 3  # shards for the bundled tokenizer, which takes its time
SOME = 30  # shards for two workers
POLL = 0.5  # seconds


@dataclass
class Run:
    """One call of the command: what it said of each shard, and the time and processor time by then."""

    marks: list[tuple[float, float, int]] = field(default_factory=list)  # clock, processor, images so far
    code: int | None = None

    @property
    def cpu(self) -> float:
        """Processor seconds an image, between the first and the last shard."""
        (_, before, first), (_, after, last) = self.marks[0], self.marks[-1]
        return (after - before) / (last - first)

    @property
    def wall(self) -> float:
        """Seconds an image, between the first and the last shard."""
        (before, _, first), (after, _, last) = self.marks[0], self.marks[-1]
        return (after - before) / (last - first)


def run(images: int, path: Path | None) -> dict[str, Any]:
    """The drill and the comparison; writes and returns the result. images: at least six shards."""
    if images < 6 * SHARD:
        raise InputError(f"bench bulk: {images} images are too few to be killed twice, give {6 * SHARD} or more")
    begin = os.getloadavg()[0]  # before the tars are made, which is work too
    with tempfile.TemporaryDirectory(prefix="bulk-") as place:
        folder = Path(place)
        save_tokenizer(folder / "tokenizer")
        make_tars(folder / "tars", images)
        before, ids = plain_loop(folder, 10)
        drill = drilled(folder, images)
        local = tokenize(folder, "local", "local", 1)
        after, _ = plain_loop(folder, 10)
        plain = (before + after) / 2
        records = [
            {"how": "plain loop", "cpu_milliseconds": 1000 * plain, "share": 1.0},
            {"how": "--engine local", "cpu_milliseconds": 1000 * local.cpu, "share": plain / local.cpu},
            {"how": "--engine ray", "cpu_milliseconds": 1000 * drill["cpu"], "share": plain / drill["cpu"]},
            *beside_bundled(folder),
        ]
        _, tokens = read_token_folder(folder / "tokens")
        protocol = machine() | {
            "images": images, "shards": -(-images // SHARD), "pictures": f"made, PNG of {SIDE} x {SIDE}",
            "tokenizer": f"fresh, {SIDE} px, 16 tokens of 256 codes", "load": begin,
            "cpu_milliseconds": "processor time an image, of the command and all processes below it, Ray's own "
            "too, from its first to its last shard; the plain loop reads, decodes and tokenizes and writes nothing",
            "share": "processor time of the plain loop over it",
        }  # fmt: skip
        result = {
            "protocol": protocol, "records": records,
            "drill": {
                "images": images, "killed": drill["killed"], "calls": len(drill["killed"]) + 1,
                "once": sum(count == 1 for count in Counter(tokens.keys).values()),
                "made_again": drill["again"],
                "equal_to_plain": float((tokens.ids[: len(ids)] == ids).float().mean()),
                "equal_to_local": _equal_files(folder / "tokens", folder / "local"),
            },
            "two_workers": two_workers(folder),
        }  # fmt: skip
    if path is not None:
        write_json(path, result)
    return result


def save_tokenizer(folder: Path) -> None:
    """A small tokenizer of fresh weights."""
    torch.manual_seed(0)
    network = ConvConfig(base_channels=16, multipliers=(1, 1, 1), num_blocks=1, attention=False, stem=2)
    tokenizer = CVQTokenizer(CVQConfig(SIDE, 16, network=network, quantizer=PlainConfig(codebook_size=256))).eval()
    with torch.no_grad():
        maps = tokenizer.encoder(torch.randn(64, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)))
        tokenizer.quantizer.start_from(maps, torch.Generator().manual_seed(0))
    tokenizer.save_pretrained(folder)


def make_tars(folder: Path, images: int) -> None:
    """Smooth coloured pictures with captions, SHARD of them a tar; picture i is always the same one."""
    folder.mkdir()
    for start in range(0, images, SHARD):
        corners = np.random.default_rng(start).integers(0, 256, (SHARD, 4, 4, 3), dtype=np.uint8)
        with tarfile.open(folder / f"images-{start // SHARD:05d}.tar", "w") as tar:
            for i in range(start, min(start + SHARD, images)):
                picture = Image.fromarray(corners[i - start]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                file = io.BytesIO()
                picture.save(file, "PNG", compress_level=1)
                for name, data in ((f"{i:08d}.png", file.getvalue()), (f"{i:08d}.txt", f"picture {i}".encode())):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


@torch.no_grad()
def plain_loop(folder: Path, shards: int) -> tuple[float, Tensor]:
    """(Processor seconds an image, ids) of the first shards, as a script of one's own would make them."""
    tokenizer = CVQTokenizer.from_pretrained(folder / "tokenizer")
    paths = sorted((folder / "tars").glob("*.tar"))[:shards]
    side = tokenizer.image_size
    for batch in islice(_batches(paths[0], side), 2):  # what the first calls take once
        tokenizer.tokenize(batch)
    begin = time.process_time()
    ids = [tokenizer.tokenize(batch) for path in paths for batch in _batches(path, side)]
    taken = time.process_time() - begin
    return taken / sum(map(len, ids)), torch.cat(ids)


def beside_bundled(folder: Path) -> list[dict[str, Any]]:
    """The same with the tokenizer of the package, on a few shards; in turns, and the median of their shares."""
    place = part_of(folder, "bundled", FEW)
    CVQTokenizer.from_pretrained("bundled").save_pretrained(place / "tokenizer")
    plain, engine = [], []
    for turn in range(TURNS):
        plain.append(plain_loop(place, FEW - 1)[0])
        engine.append(tokenize(place, "ray", f"turn-{turn}", 1).cpu)
    share = statistics.median(a / b for a, b in zip(plain, engine, strict=True))
    return [
        {"how": f"{how}, bundled tokenizer", "cpu_milliseconds": 1000 * statistics.median(spent), "share": by}
        for how, spent, by in (("plain loop", plain, 1.0), ("--engine ray", engine, share))
    ]


def part_of(folder: Path, name: str, shards: int) -> Path:
    """A folder with the first tars alone, without a tokenizer."""
    place = folder / name
    (place / "tars").mkdir(parents=True)
    for tar in sorted((folder / "tars").glob("*.tar"))[:shards]:
        (place / "tars" / tar.name).hardlink_to(tar)
    return place


def _batches(path: Path, side: int) -> Iterator[Tensor]:
    pictures = []
    with tarfile.open(path) as tar:
        for member in tar:
            if member.name.endswith(".png") and (file := tar.extractfile(member)) is not None:
                pictures.append(to_tensor(resize_crop(Image.open(file).convert("RGB"), side)))
    for start in range(0, len(pictures), BATCH):
        yield normalize(torch.stack(pictures[start : start + BATCH]))


def drilled(folder: Path, images: int) -> dict[str, Any]:
    """The command by Ray, killed at a third and at two thirds of the images, and once more to its end."""
    killed: list[int] = []
    whole: list[Run] = []
    again = 0
    for goal in (images // 3, 2 * images // 3, None):
        before = _listed(folder / "tokens")
        one = tokenize(folder, "ray", "tokens", 1, stop_at=None if goal is None else goal - SHARD * len(before))
        after = _listed(folder / "tokens")
        again += sum(after.get(name) != stamp for name, stamp in before.items())
        whole.append(one)
        if goal is not None:
            killed.append(SHARD * len(after))
    spent = [(run.marks[-1][1] - run.marks[0][1], run.marks[-1][2] - run.marks[0][2]) for run in whole]
    return {"killed": killed, "again": again, "cpu": sum(s for s, _ in spent) / sum(n for _, n in spent)}


def _listed(folder: Path) -> dict[str, int]:
    """The shards that the manifest lists, and when their files were written."""
    if not (folder / "manifest.json").exists():
        return {}
    return {s.name: (folder / f"{s.name}.safetensors").stat().st_mtime_ns for s in read_manifest(folder).shards}


def tokenize(folder: Path, engine: str, name: str, workers: int, *, stop_at: int | None = None) -> Run:
    """One call of the command; stop_at: images after which it is killed, without a word."""
    words = ["data", "tokenize", str(folder / "tars"), "-o", str(folder / name), "-t", str(folder / "tokenizer")]
    command = [sys.executable, "-m", "channelvq", *words, "--engine", engine, "--workers", str(workers)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled", "CUDA_VISIBLE_DEVICES": ""}
    done = Run()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    with process, _Spent(process) as spent:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("images-"):
                so_far = (done.marks[-1][2] if done.marks else 0) + int(line.split(":")[1].split()[0])
                done.marks.append((time.monotonic(), spent.now(), so_far))
                if stop_at is not None and so_far >= stop_at:
                    process.send_signal(signal.SIGKILL)
                    break
            else:
                print(line, end="", file=sys.stderr)
    done.code = process.returncode
    if stop_at is None and done.code:
        raise InputError(f"bench bulk: {' '.join(command)} ended with code {done.code}")
    return done


class _Spent:
    """Processor time of a process and all below it, of those that have ended too, as far as they were seen."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.root, self.by_process = psutil.Process(process.pid), dict[tuple[int, float], float]()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "_Spent":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def now(self) -> float:
        """Seconds so far."""
        self._look()
        return sum(self.by_process.copy().values())

    def _look(self) -> None:
        try:
            below = [self.root, *self.root.children(recursive=True)]
        except psutil.Error:
            return
        for process in below:
            try:
                times = process.cpu_times()
                self.by_process[process.pid, process.create_time()] = times.user + times.system
            except psutil.Error:
                continue

    def _watch(self) -> None:
        while not self.ended.wait(POLL):
            self._look()


def _equal_files(one: Path, other: Path) -> bool:
    names = [path.name for path in one.iterdir() if not path.name.startswith(".")]
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def two_workers(folder: Path) -> dict[str, float] | None:
    """How many times as fast two workers are as one, and two plain loops as one; None on a single processor.

    The loops share nothing, so their gain is what the machine itself allows: virtual processors may share a core.
    """
    if len(os.sched_getaffinity(0)) < 2:
        return None
    place = part_of(folder, "some", SOME)
    shutil.copytree(folder / "tokenizer", place / "tokenizer")
    rates = {n: 1 / tokenize(place, "ray", f"workers-{n}", n).wall for n in (1, 2)}
    loops = {n: plain_loops(place, n) for n in (1, 2)}
    return {
        "images_per_second": rates[1], "of_two": rates[2], "ratio": rates[2] / rates[1],
        "plain_ratio": loops[2] / loops[1],
    }  # fmt: skip


def plain_loops(folder: Path, number: int) -> float:
    """Images a second of so many plain loops at once, each a process with one thread."""
    # Spawned, because a fork of a process whose torch threads have run may hang.
    with ProcessPoolExecutor(number, multiprocessing.get_context("spawn"), _one_thread) as pool:
        return sum(pool.map(_loop_rate, [folder] * number))


def _one_thread() -> None:
    torch.set_num_threads(1)


def _loop_rate(folder: Path) -> float:
    begin = time.monotonic()
    _, ids = plain_loop(folder, SOME)
    return len(ids) / (time.monotonic() - begin)


def shown(result: dict[str, Any]) -> TextTable:
    """Processor time an image by each way, and the gain of a second worker."""
    rows = [[r["how"], f"{r['cpu_milliseconds']:.2f}", f"{r['share']:.2f}"] for r in result["records"]]
    two = result["two_workers"]
    gains = (f"{two['ratio']:.2f}", f"{two['plain_ratio']:.2f}") if two else ("not measured",) * 2
    rows.append(["--engine ray, two workers over one, on the clock", "", gains[0]])
    rows.append(["two plain loops over one, on the clock: what the machine allows", "", gains[1]])
    note = f"{result['protocol']['machine']}, at a load of {result['protocol']['load']:.1f}."
    return TextTable(("how", "processor ms an image", "plain loop over it"), rows, note=note)


def shown_drill(result: dict[str, Any]) -> TextTable:
    """What was killed when, and what there was in the end."""
    drill = result["drill"]
    rows = [
        ["images", f"{drill['images']:,}"],
        ["killed (SIGKILL) after", " and ".join(f"{count:,}" for count in drill["killed"])],
        ["in the tokens exactly once", f"{drill['once']:,}"],
        ["shards of before that a later call made again", str(drill["made_again"])],
        ["ids equal to the plain loop's", f"{drill['equal_to_plain']:.2%}"],
        ["files equal to those of --engine local", "yes" if drill["equal_to_local"] else "no"],
    ]
    return TextTable(("drill", "figure"), rows)


TABLES: Tables = {"bulk": ("bulk.json", shown), "bulk-drill": ("bulk.json", shown_drill)}
