"""Refusals, clients that vanish, the end of the server, and what is beside the images."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import httpx
import pytest
import torch
from PIL import Image
from tests.car.conftest import BACKBONE, tiny_text, tiny_tokenizer
from tests.serve.conftest import Running, running, tickets, until

from channelvq.car.config import CARConfig
from channelvq.car.model import CAR
from channelvq.errors import InputError
from channelvq.nn.resampler import ResamplerConfig
from channelvq.serve.images import partial_lengths
from channelvq.serve.limits import Limits
from channelvq.serve.server import PatientProtocol, read_key

GENERATE = "/v1/images/generations"


def post(server: Running, path: str = GENERATE, **body: object) -> httpx.Response:
    return httpx.post(server.url + path, json=body, timeout=30)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "not valid JSON"),
        (b"\xff\xfe", 400, ""),
        (b"[]", 400, "body"),
        (b"[" * 100_000, 400, "parsing the body"),
        (b'{"prompt": "a", "n": 10000}', 400, "n: expected 1..10, got 10000"),
        (b'{"prompt": "a", "n": 0}', 400, "n: Input should be"),
        (b'{"prompt": "%s"}' % (b"a " * 2**19), 400, "prompt: 1048576 characters are more than the 4000"),
        (b'{"prompt": "%s"}' % (b"dog " * 500), 400, "the model takes at most 24"),
        (b'{"prompt": "%s"}' % (b"a" * 2**25), 413, "larger than"),
        (b'{"prompt": "a", "size": "1024x1024"}', 400, "this model draws 16x16 alone"),
        (b'{"prompt": "a", "size": "16x"}', 400, "size: expected WIDTHxHEIGHT, such as 16x16"),
        (b'{"prompt": "a", "speed": 1}', 400, "unknown parameter: 'speed'"),
        (b'{"prompt": "a", "seed": -1}', 400, "seed"),
        (b'{"prompt": "a", "seed": 1e400}', 400, "seed"),
        (b'{"prompt": "a", "guidance_scale": 1e30}', 400, "guidance_scale"),
        (b'{"prompt": "a", "temperature": NaN}', 400, "temperature"),
        (b'{"prompt": "a", "num_tokens": 9}', 400, "num_tokens: expected a whole number in 1..8"),
        (b'{"prompt": "a", "n": 2, "stream": true}', 400, "with stream it must be 1"),
        (b'{"prompt": "a", "partial_images": 2}', 400, "goes with stream"),
        (b'{"prompt": "a", "output_format": "../../etc/passwd"}', 400, "output_format"),
        (b'{"prompt": "\\ud800"}', 400, ""),
        (b'{"prompt": ["a"]}', 400, "prompt"),
    ],
)
def test_what_cannot_be_served_is_refused(server: Running, body: bytes, status: int, message: str) -> None:
    answer = httpx.post(server.url + GENERATE, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert message in error["message"]
    assert len(answer.content) < 1000
    assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}


def test_a_body_of_unknown_length_is_bounded_too(server: Running) -> None:
    answer = httpx.post(server.url + GENERATE, content=(b"a" * 2**20 for _ in range(40)))
    assert answer.status_code == 413


def test_large_bodies_are_bounded_together(start: Callable[..., Running]) -> None:
    server = start(body_bytes=100_000, body_seconds=20)
    place = urlparse(server.url)
    head = f"POST {GENERATE} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
    with ExitStack() as connections:
        for _ in range(9):
            connection = socket.create_connection((str(place.hostname), int(place.port or 0)), 5)
            connections.enter_context(connection).sendall(head.encode() + b" " * 95_000)
            time.sleep(0.05)
        assert b" 503 " in connection.recv(1000)
    assert until(lambda: post(server, prompt="a").status_code == 200)


def test_a_small_file_of_a_huge_picture_is_refused(server: Running) -> None:
    file = BytesIO()
    Image.new("1", (8192, 4096)).save(file, "png")
    answer = post(server, "/v1/tokenize", images=[base64.b64encode(file.getvalue()).decode()])
    assert answer.status_code == 400
    assert "8192 x 4096 pixels" in answer.json()["error"]["message"]


def test_unknown_paths_and_methods(server: Running) -> None:
    assert httpx.get(server.url + "/v1/../../etc/passwd").json()["error"]["message"] == "Not Found"
    assert httpx.get(server.url + GENERATE).status_code == 405
    assert httpx.get(server.url + "/openapi.json").json()["paths"].keys() >= {GENERATE, "/v1/tokenize", "/healthz"}


def test_a_full_queue_is_refused_and_the_rest_is_served(start: Callable[..., Running], go: threading.Event) -> None:
    server, answers = start(waiting=2), list[httpx.Response]()
    threads = [threading.Thread(target=lambda n=n: answers.append(post(server, prompt="a", n=n))) for n in (1, 2)]
    for i, thread in enumerate(threads):  # one runs, then two wait
        thread.start()
        assert until(lambda i=i: len(server.engine._running) == 1 and len(server.engine._waiting) == 2 * i)
    refused = post(server, prompt="a")
    assert refused.status_code == 429
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert int(refused.headers["Retry-After"]) > 0
    go.set()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [200] * 2
    assert post(server, prompt="a").status_code == 200


def test_clients_that_vanish_leave_no_rows(start: Callable[..., Running], go: threading.Event) -> None:
    server = start()
    place = urlparse(server.url)
    with ExitStack() as connections:
        for stream in ("true", "false") * 10:
            body = f'{{"prompt": "a", "stream": {stream}}}'.encode()
            head = f"POST {GENERATE} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
            connection = socket.create_connection((str(place.hostname), int(place.port or 0)))
            connections.enter_context(connection)
            connection.sendall(f"{head}{len(body)}\r\n\r\n".encode() + body)
        assert until(lambda: len(tickets(server.engine)) == 20)
    assert until(lambda: all(ticket.gone for ticket in tickets(server.engine)))
    go.set()
    assert server.settles()
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    assert "cvq_images_dropped_total 20.0" in lines
    assert "cvq_images_total 0.0" in lines
    assert post(server, prompt="a", seed=1).status_code == 200


def test_too_slow_an_answer_is_given_up(start: Callable[..., Running], go: threading.Event) -> None:
    server = start(seconds=0.3)
    answer = post(server, prompt="a")
    assert answer.status_code == 504
    assert "no answer within 0.3 seconds" in answer.json()["error"]["message"]
    assert all(ticket.gone for ticket in tickets(server.engine))
    go.set()
    assert server.settles()


def test_slow_clients_are_sent_away(start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("channelvq.serve.server.SECONDS_FOR_A_HEAD", 0.3)
    server = start(body_seconds=0.3)
    assert PatientProtocol._until_head is None
    place = urlparse(server.url)
    address = str(place.hostname), int(place.port or 0)
    with socket.create_connection(address, 5) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost:")
        assert connection.recv(1000) == b""  # closed
    with socket.create_connection(address, 5) as connection:
        connection.sendall(f"POST {GENERATE} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode())
        assert b" 408 " in connection.recv(1000)


def test_the_end_of_the_server_finishes_what_runs(start: Callable[..., Running], go: threading.Event) -> None:
    server = start()
    answers: list[httpx.Response] = []
    clients = [threading.Thread(target=lambda: answers.append(post(server, prompt="a", seed=4))) for _ in range(10)]
    for client in clients:
        client.start()
    assert until(lambda: len(tickets(server.engine)) == 10)
    server.server.should_exit = True  # as its handler of SIGTERM does
    go.set()
    for client in clients:
        client.join()
    assert [answer.status_code for answer in answers] == [200] * 10
    server.thread.join(10)
    assert not server.engine.alive


def test_ids_there_and_back(server: Running, car: CAR) -> None:
    files = []
    for color in ("red", "blue"):
        file = BytesIO()
        Image.new("RGB", (40, 30), color).save(file, "png")
        files.append(base64.b64encode(file.getvalue()).decode())
    answer = post(server, "/v1/tokenize", images=[files[0], "data:image/png;base64," + files[1]]).json()
    assert answer["ids"] == car.tokenizer.tokenize([base64.b64decode(f) for f in files]).tolist()
    assert (answer["num_tokens"], answer["codebook_size"]) == (8, 32)
    back = post(server, "/v1/detokenize", ids=[answer["ids"][0], answer["ids"][1][:3]]).json()["data"]
    alone = [car.tokenizer.detokenize([ids])[0] for ids in (answer["ids"][0], answer["ids"][1][:3])]  # type: ignore[arg-type]
    got = [Image.open(BytesIO(base64.b64decode(image["b64_json"]))) for image in back]
    assert [image.tobytes() for image in got] == [image.tobytes() for image in alone]


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/v1/tokenize", {"images": ["/etc/passwd"]}, "in base64"),
        ("/v1/tokenize", {"images": ["file:///etc/passwd"]}, "in base64"),
        ("/v1/tokenize", {"images": ["data:text/plain,hello"]}, "must be in base64"),
        ("/v1/tokenize", {"images": ["aGVsbG8="]}, "not an image"),
        ("/v1/tokenize", {"images": []}, "images"),
        ("/v1/tokenize", {"images": ["aGVsbG8="] * 11}, "expected 1..10"),
        ("/v1/detokenize", {"ids": [[1, 32]]}, "32 at image 0, token 1 is outside 0..31"),
        ("/v1/detokenize", {"ids": [[1] * 9]}, "k in 1..8"),
        ("/v1/detokenize", {"ids": [[10**30]]}, "ids"),
        ("/v1/detokenize", {"ids": [[]]}, "ids"),
        ("/v1/detokenize", {"ids": [[True]]}, "ids"),
    ],
)
def test_what_is_no_image_or_no_ids(server: Running, path: str, body: dict[str, object], message: str) -> None:
    answer = post(server, path, **body)
    assert answer.status_code == 400, answer.text
    assert message in answer.json()["error"]["message"]


def test_other_sizes_are_those_of_generate(new_sizes: CAR) -> None:
    """WIDTHxHEIGHT as OpenAI writes it; beside pictures of the home size, and on the way."""

    def wanted(**settings: Any) -> bytes:
        return new_sizes.generate("a green dog", seed=3, **settings).images[0].tobytes()

    with running(new_sizes, Limits()) as server:
        asked = {"prompt": "a green dog", "seed": 3}
        for size, given in (("24x16", (16, 24)), ("16x16", None), ("auto", None), ("21x19", (19, 21))):
            answer = post(server, size=size, **asked).json()
            picture = Image.open(BytesIO(base64.b64decode(answer["data"][0]["b64_json"])))
            assert picture.tobytes() == wanted(size=given)
            assert answer["size"] == "{}x{}".format(*picture.size)
        body = asked | {"size": "24x16", "stream": True, "partial_images": 2}
        with httpx.stream("POST", server.url + GENERATE, json=body, timeout=30) as events:
            shown = [json.loads(line[5:]) for line in events.iter_lines() if line.startswith("data:")]
        for event, length in zip(shown, [*partial_lengths(8, 2), 8], strict=True):
            picture = Image.open(BytesIO(base64.b64decode(event["b64_json"])))
            assert (picture.size, event["size"]) == ((24, 16), "24x16")
            assert picture.tobytes() == wanted(size=(16, 24), num_tokens=length)
        for size in ("1024x1024", "0x16", "16x16x3", "-1x5", "16 x 16", "99999999x1"):
            answer = post(server, size=size, **asked)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "size")


@pytest.fixture
def new_sizes() -> CAR:
    """Its tokenizer has a resampler."""
    tokenizer = tiny_tokenizer(resampler=ResamplerConfig(width=16, num_heads=2))
    config = CARConfig(backbone=BACKBONE, max_text_tokens=24)  # type: ignore[arg-type]
    return CAR(config, tokenizer, tiny_text(), generator=torch.Generator().manual_seed(1)).eval()


def test_health_and_metrics(start: Callable[..., Running]) -> None:
    server = start(key="the-right-key-0123")
    right = {"Authorization": "Bearer the-right-key-0123"}
    assert httpx.get(f"{server.url}/healthz").json()["status"] == "ok"
    assert httpx.get(f"{server.url}/metrics").status_code == 401
    body = {"prompt": "a", "n": 2}
    assert httpx.post(server.url + GENERATE, json=body, headers=right, timeout=30).status_code == 200
    lines = httpx.get(f"{server.url}/metrics", headers=right).text.splitlines()
    assert "cvq_images_total 2.0" in lines
    assert "cvq_tokens_total 16.0" in lines
    assert f'cvq_requests_total{{path="{GENERATE}",status="200"}} 1.0' in lines


@pytest.mark.skipif(os.name != "posix", reason="permissions of files")
def test_the_key_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("0123456789abcdef\n")
    file.chmod(0o644)
    with pytest.raises(InputError, match="others can read this key"):
        read_key(file)
    file.chmod(0o600)
    assert read_key(file) == "0123456789abcdef"
    for bad in ("short", "two words in one line", "ключ" * 8):
        file.write_text(bad)
        with pytest.raises(InputError, match="expected a key of at least 16"):
            read_key(file)


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_the_command_serves_and_ends_on_sigterm(car: CAR, tmp_path: Path) -> None:
    car.save_pretrained(tmp_path / "tiny")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "channelvq", "serve", "--model", str(tmp_path / "tiny"), "--port", str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:

        def lives() -> bool:
            try:
                return httpx.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
            except httpx.TransportError:
                return False

        try:
            assert until(lives, 100)
        finally:
            process.send_signal(signal.SIGTERM)
            said = process.communicate(timeout=30)[1]
    assert process.returncode in (0, -signal.SIGTERM)
    assert "Traceback" not in said
