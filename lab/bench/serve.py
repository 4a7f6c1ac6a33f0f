"""`python -m lab bench serve`: `cvq serve` under load, by the official client of OpenAI's API.

A server in a process of its own, and clients that each ask again as soon as they have their answer. Every answer is
compared with the picture that `CAR.generate` makes of its prompt and seed alone.
"""

import asyncio
import base64
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
from openai import AsyncOpenAI
from PIL import Image

from channelvq import CAR
from channelvq.errors import InputError
from channelvq.evaluate.results import write_json
from channelvq.evaluate.tables import TextTable
from lab.bench.timing import machine
from lab.study import Tables

PROMPTS = ("a photo of two bananas", "a photo of a green dog", "a photo of three apples", "a photo of a red car")
SEEDS = 16  # pictures to compare with; more would only take longer to make
PARTIAL = 3
SECONDS_TO_START = 120
Expected = dict[int, bytes]


@dataclass
class Seen:
    """What the clients of a load got. first, all: seconds of each request."""

    lost: int = 0
    mixed_up: int = 0
    first: list[float] = field(default_factory=list)
    all: list[float] = field(default_factory=list)


def prompt_of(seed: int) -> str:
    """Each seed has a prompt of its own."""
    return PROMPTS[seed % len(PROMPTS)]


def pictures(model: str) -> Expected:
    """Pixels of every seed, by `CAR.generate`, to which an image is the same alone and beside others."""
    images = CAR.from_pretrained(model).generate([prompt_of(seed) for seed in range(SEEDS)], seed=0).images
    return {seed: image.tobytes() for seed, image in enumerate(images)}


@contextmanager
def served(model: str) -> Iterator[str]:
    """The address of a server, which is ended by SIGTERM."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "channelvq", "serve", "--model", model, "--port", str(port)]
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + SECONDS_TO_START
    with subprocess.Popen(command) as process:
        try:
            while not _lives(url):
                if process.poll() is not None or time.monotonic() > end:
                    raise InputError(f"the server did not start: {' '.join(command)}")
                time.sleep(0.2)
            yield url
        finally:
            process.terminate()


def _lives(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz").status_code == 200
    except httpx.TransportError:
        return False


async def _ask(client: AsyncOpenAI, model: str, seed: int, expected: Expected, seen: Seen) -> None:
    start, got = time.perf_counter(), b""
    try:
        events = await client.images.generate(
            prompt=prompt_of(seed), model=model, stream=True, partial_images=PARTIAL, extra_body={"seed": seed}
        )
        async for event in events:
            if not got:
                seen.first.append(time.perf_counter() - start)
            got = base64.b64decode(event.b64_json)
    except Exception:  # whatever the client and its transport call it, the answer is lost
        got = b""
    if not got:
        seen.lost += 1
        return
    seen.all.append(time.perf_counter() - start)
    seen.mixed_up += Image.open(BytesIO(got)).tobytes() != expected[seed]


async def load(url: str, model: str, clients: int, seconds: float, expected: Expected) -> dict[str, Any]:
    """So many clients for so long; what they have begun they wait for."""
    seen, start = Seen(), time.perf_counter()

    async def client_of(number: int) -> None:
        async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300) as client:
            turn = number
            while time.perf_counter() - start < seconds:
                await _ask(client, model, turn % SEEDS, expected, seen)
                turn += 7  # another prompt and seed each time

    await asyncio.gather(*map(client_of, range(clients)))
    took = time.perf_counter() - start
    return {
        "clients": clients, "requests": len(seen.all) + seen.lost, "lost": seen.lost, "mixed_up": seen.mixed_up,
        "seconds": took, "images_per_second": len(seen.all) / took,
        "first_partial_seconds": statistics.median(seen.first), "first_partial_seconds_most": max(seen.first),
        "request_seconds": statistics.median(seen.all),
    }  # fmt: skip


async def vanish(url: str, clients: int) -> dict[str, Any]:
    """Clients that go away after their first picture; what is left of them."""

    async def one(seed: int) -> None:
        async with (
            httpx.AsyncClient(timeout=300) as client,
            client.stream("POST", f"{url}/v1/images/generations", json=_body(seed)) as answer,
        ):
            async for _ in answer.aiter_lines():
                return

    await asyncio.gather(*map(one, range(clients)))
    start = time.perf_counter()
    while (left := httpx.get(f"{url}/healthz").json())["running"] + left["waiting"] and time.perf_counter() < start + 9:
        await asyncio.sleep(0.05)
    return {"clients": clients, "rows_left": left["running"] + left["waiting"]}


def _body(seed: int) -> dict[str, Any]:
    return {"prompt": prompt_of(seed), "seed": seed, "stream": True, "partial_images": PARTIAL}


def run(model: str, clients: list[int], seconds: float, path: Path | None) -> dict[str, Any]:
    """Measure every number of clients with one server, and write the result."""
    expected = pictures(model)
    with served(model) as url:
        asyncio.run(load(url, model, 1, 1.0, expected))  # the first request of a process is slower
        records = [asyncio.run(load(url, model, count, seconds, expected)) for count in clients]
        vanished = asyncio.run(vanish(url, 100))
    for record in records:
        record["over_one_client"] = record["images_per_second"] / records[0]["images_per_second"]
    about = {"model": model, "partial_images": PARTIAL, "seconds": seconds, "vanished": vanished,
             "checked": f"every answer against CAR.generate, {SEEDS} prompts with seeds"}  # fmt: skip
    result = {"protocol": machine() | about, "records": records}
    if path is not None:
        write_json(path, result)
    return result


HEADINGS = ("clients", "requests", "lost", "mixed up", "images/s", "over one client", "first partial image", "request")


def shown(result: dict[str, Any]) -> TextTable:
    """A row for each number of clients."""
    rows = [
        [str(r["clients"]), str(r["requests"]), str(r["lost"]), str(r["mixed_up"]), f"{r['images_per_second']:.2f}",
         f"{r['over_one_client']:.1f}", f"{r['first_partial_seconds']:.2f} s", f"{r['request_seconds']:.2f} s"]
        for r in result["records"]
    ]  # fmt: skip
    protocol = result["protocol"]
    gone = protocol["vanished"]
    note = f"{protocol['machine']}. {gone['clients']} clients that vanished mid-stream left {gone['rows_left']} rows."
    return TextTable(HEADINGS, rows, note=note)


TABLES: Tables = {"serve": ("serve.json", shown)}
