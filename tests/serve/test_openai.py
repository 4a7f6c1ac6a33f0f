"""The official client of OpenAI's API against the server: every answer is the picture of its seed."""

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import pytest
from PIL import Image
from tests.serve.conftest import Running

from channelvq.car.model import CAR
from channelvq.serve.images import partial_lengths

openai = pytest.importorskip("openai")
PROMPTS = ["a green dog", "a red car left of a blue umbrella", "", "three small black cats"]


CLIENTS: "list[openai.OpenAI]" = []


@pytest.fixture(autouse=True)
def closed_clients() -> Iterator[None]:
    yield
    while CLIENTS:  # the garbage collector would warn of their sockets, in whatever test it runs
        CLIENTS.pop().close()


def client_of(server: Running, key: str = "none") -> "openai.OpenAI":
    CLIENTS.append(openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0))
    return CLIENTS[-1]


def pixels(b64: str) -> bytes:
    return Image.open(BytesIO(base64.b64decode(b64))).convert("RGB").tobytes()


def expected(car: CAR, prompt: str, **settings: object) -> bytes:
    return car.generate(prompt, **settings).images[0].tobytes()  # type: ignore[arg-type]


def test_images_are_those_of_generate(server: Running, car: CAR) -> None:
    answer = client_of(server).images.generate(
        prompt="a green dog", model="tiny", n=3, size="16x16", extra_body={"seed": 5, "guidance_scale": 2.0}
    )
    assert answer.data is not None
    assert len(answer.data) == 3
    for i, image in enumerate(answer.data):
        assert pixels(image.b64_json or "") == expected(car, "a green dog", seed=5 + i, guidance_scale=2.0)
    assert answer.usage is not None
    text = int(car.text.encode("a green dog", 24).mask.sum())
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (3 * text, 24)
    assert (answer.size, answer.output_format) == ("16x16", "png")


def test_a_seed_that_is_not_given_is_told(server: Running, car: CAR) -> None:
    client = client_of(server)
    answers = [client.images.generate(prompt="a").model_dump()["data"][0] for _ in range(2)]
    assert answers[0]["seed"] != answers[1]["seed"]
    for answer in answers:
        assert pixels(answer["b64_json"]) == expected(car, "a", seed=answer["seed"])


def test_streaming_shows_prefixes_and_then_the_image(server: Running, car: CAR) -> None:
    events = list(
        client_of(server).images.generate(
            prompt="a green dog", stream=True, partial_images=3, extra_body={"seed": 7, "temperature": 0.8}
        )
    )
    assert [event.type for event in events] == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
    lengths = [*partial_lengths(8, 3), 8]
    assert lengths == [2, 4, 6, 8]
    for event, length in zip(events, lengths, strict=True):
        wanted = expected(car, "a green dog", seed=7, temperature=0.8, num_tokens=length)
        assert pixels(event.b64_json) == wanted
    assert [event.partial_image_index for event in events[:-1]] == [0, 1, 2]  # type: ignore[union-attr]
    assert events[-1].usage.output_tokens == 8  # type: ignore[union-attr]
    (only,) = client_of(server).images.generate(prompt="a", stream=True, extra_body={"seed": 1, "num_tokens": 5})
    assert pixels(only.b64_json) == expected(car, "a", seed=1, num_tokens=5)


def test_partial_lengths_are_fewer_than_the_tokens() -> None:
    assert partial_lengths(64, 3) == [16, 32, 48]
    assert partial_lengths(2, 16) == [1]
    assert partial_lengths(1, 3) == []


@pytest.mark.parametrize("kind", ["png", "webp", "jpeg"])
def test_formats_and_urls(server: Running, car: CAR, kind: str) -> None:
    answer = client_of(server).images.generate(
        prompt="a", output_format=kind, response_format="url", extra_body={"seed": 2}  # type: ignore[call-overload]
    )  # fmt: skip
    head, _, data = answer.data[0].url.partition(",")
    assert head == f"data:image/{kind};base64"
    image = Image.open(BytesIO(base64.b64decode(data)))
    assert image.format == kind.upper()
    assert kind == "jpeg" or image.convert("RGB").tobytes() == expected(car, "a", seed=2)


def test_twenty_clients_at_once_each_get_their_own(server: Running, car: CAR) -> None:
    client = client_of(server)

    def ask(seed: int) -> tuple[bytes, bytes]:
        prompt = PROMPTS[seed % 4]
        settings = {"seed": seed, "guidance_scale": (1.0, 3.0)[seed % 2], "temperature": (0.7, 1.0, 1.3)[seed % 3]}
        if seed % 5 == 0:
            *_, last = client.images.generate(prompt=prompt, stream=True, partial_images=2, extra_body=settings)
            return pixels(last.b64_json), expected(car, prompt, **settings)
        answer = client.images.generate(prompt=prompt, extra_body=settings)
        return pixels(answer.data[0].b64_json or ""), expected(car, prompt, **settings)  # type: ignore[index]

    with ThreadPoolExecutor(20) as pool:
        for got, wanted in pool.map(ask, range(60)):
            assert got == wanted
    assert server.settles()


def test_the_models(server: Running) -> None:
    client = client_of(server)
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match=r"'dall-e-3' is not served here, 'tiny' is"):
        client.images.generate(prompt="a", model="dall-e-3")


def test_a_wrong_key_is_refused_and_the_right_one_is_not(start) -> None:  # type: ignore[no-untyped-def]
    server = start(key="the-right-key-0123")
    for wrong in ("the-right-key-0124", "x"):
        with pytest.raises(openai.AuthenticationError, match="wrong or missing API key"):
            client_of(server, wrong).models.list()
    assert client_of(server, "the-right-key-0123").images.generate(prompt="a").data


def test_an_error_on_the_way_is_told_in_the_stream(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(rows: object) -> None:
        raise RuntimeError("secret")

    with monkeypatch.context() as patch:
        patch.setattr(server.engine.model.tokenizer, "detokenize_prefixes", broken)
        with pytest.raises(openai.APIError, match="failed to draw this image") as caught:
            list(client_of(server).images.generate(prompt="a", stream=True))
        assert "secret" not in str(caught.value.body)
        with pytest.raises(openai.InternalServerError):
            client_of(server).images.generate(prompt="a")
    assert server.settles()
    assert client_of(server).images.generate(prompt="a").data
