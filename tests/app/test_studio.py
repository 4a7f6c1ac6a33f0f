"""What the page shows, without a browser: prefixes, changes, drawings, the codebook, and what visitors may upload."""

import base64
import re
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.car.conftest import make_car, tiny_tokenizer

from channelvq.app import codebook, tokens
from channelvq.app.drawing import draw
from channelvq.app.studio import Studio
from channelvq.app.words import note
from channelvq.car.model import CAR
from channelvq.car.settings import SamplingSettings
from channelvq.codec import decompress
from channelvq.errors import InputError
from channelvq.images import to_tensor
from channelvq.tokenizer import CVQConfig, CVQTokenizer

PLAIN = SamplingSettings(guidance_scale=1.0)


@pytest.fixture(scope="module")
def car() -> CAR:
    return make_car()


@pytest.fixture(scope="module")
def studio(car: CAR) -> Studio:
    return Studio(car)


@pytest.fixture(scope="module")
def of(studio: Studio) -> tokens.Tokenized:
    return studio.example(3)


def pictures(page: str) -> list[Image.Image]:
    return [Image.open(BytesIO(base64.b64decode(data))) for data in re.findall(r"data:image/png;base64,([^\"]+)", page)]


def test_the_slider_shows_the_prefix_its_bytes_and_a_file_of_it(studio: Studio, of: tokens.Tokenized) -> None:
    page = studio.compared(of, 5)
    original, ours, jpeg, webp = pictures(page)
    wanted = studio.tokenizer.detokenize(torch.tensor([of.ids[:5]]))[0]
    assert torch.equal(to_tensor(ours), to_tensor(wanted))
    assert original.size == jpeg.size == webp.size == (16, 16)
    assert "<b>4</b> bytes" in page  # 5 tokens of 5 bits
    assert page.count("alt=") == page.count("<img")
    file = base64.b64decode(re.findall(r"octet-stream;base64,([^\"]+)", page)[0])
    assert torch.equal(to_tensor(decompress([file], studio.tokenizer)[0]), to_tensor(wanted))


def test_tiles_beyond_the_prefix_are_faint(studio: Studio, of: tokens.Tokenized) -> None:
    page = studio.tiles(of, 3)
    assert len(pictures(page)) == studio.tokenizer.num_tokens
    assert page.count("cvq-off") == studio.tokenizer.num_tokens - 3


@pytest.mark.parametrize("axis", ["channel", "patch"])
def test_a_token_changed_to_itself_changes_nothing_and_another_one_does(axis: str) -> None:
    like = tiny_tokenizer().config
    config = CVQConfig(16, like.latent_channels, axis, like.network, like.quantizer)  # type: ignore[arg-type]
    tokenizer = CVQTokenizer(config).eval()
    with torch.no_grad():
        tokenizer.quantizer.codes().mul_(100)  # fresh ones are as good as zero
    ids = tokenizer.tokenize(Image.new("RGB", (16, 16), (200, 30, 30)))[0].tolist()
    same = tokens.changed(tokenizer, ids, 2, ids[1])
    assert torch.equal(to_tensor(same.before), to_tensor(same.after))
    assert to_tensor(same.difference).unique().tolist() == [128]
    for code in ((ids[1] + 1) % tokenizer.codebook_size, None):
        other = tokens.changed(tokenizer, ids, 2, code)
        assert torch.equal(to_tensor(other.before), to_tensor(same.before))
        assert not torch.equal(to_tensor(other.after), to_tensor(same.after))


@pytest.mark.parametrize(("number", "code"), [(0, 1), (9, 1), (1, -1), (1, 32)])
def test_tokens_and_codes_that_there_are_not(studio: Studio, of: tokens.Tokenized, number: int, code: int) -> None:
    with pytest.raises(InputError, match=r"token|code"):
        tokens.changed(studio.tokenizer, of.ids, number, code)


def test_another_tokenizer_shows_and_the_generator_begins_with_its_own_tokens(car: CAR) -> None:
    other = CVQTokenizer.from_pretrained("bundled")
    studio = Studio(car, other)
    of = studio.example(3)
    assert of.ids == tuple(other.tokenize(of.picture)[0].tolist())
    assert studio.beginning(of) == tokens.tokenized(car.tokenizer, of.picture).ids != of.ids
    own = Studio(car)
    assert own.beginning(own.example(3)) == own.example(3).ids


def test_a_drawing_gets_richer_and_is_that_of_generate(studio: Studio, car: CAR) -> None:
    steps = [step for _, step in studio.draw("a green dog", PLAIN, 2)]
    assert len(steps) == 8
    assert [step.length for step in steps] == sorted({step.length for step in steps})
    assert steps[-1].ids == car.generate(["a green dog"] * 2, guidance_scale=1.0).ids.tolist()
    assert steps[-1].seeds == (0, 1)


def test_a_drawing_begins_with_the_tokens_of_another(car: CAR) -> None:
    first = [*draw(car, "a green dog", PLAIN)][-1].ids[0]
    other = [*draw(car, "two bananas", PLAIN, begin=first[:5])][-1].ids[0]
    assert other[:5] == first[:5]
    assert [*draw(car, "a green dog", PLAIN, begin=first[:5])][-1].ids[0] == first
    with pytest.raises(InputError, match="keep at most 7"):
        next(draw(car, "a green dog", PLAIN, begin=first))


@pytest.mark.parametrize(("prompt", "count"), [("x" * 1001, 1), ("x", 9), ("x", 0)])
def test_drawings_out_of_bounds(car: CAR, prompt: str, count: int) -> None:
    with pytest.raises(InputError, match=r"prompt|pictures"):
        next(draw(car, prompt, PLAIN, count))


@pytest.mark.parametrize("number", [1, 4, 8])
def test_the_atlas_shows_codes_in_order_of_their_use(studio: Studio, of: tokens.Tokenized, number: int) -> None:
    table = torch.rand(8, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    table /= table.sum(1, keepdim=True)
    tiles = codebook.atlas(studio.tokenizer, table, of.ids, number, 6)
    assert len({tile.code for tile in tiles}) == 6
    assert [tile.share for tile in tiles] == table[number - 1].sort(descending=True).values[:6].tolist()
    assert len(pictures(studio.atlas(of, number)[0])) == 32


def test_codes_in_use_are_between_one_and_all() -> None:
    one, all_of_them = torch.full((8,), 1e-12, dtype=torch.float64), torch.full((8,), 1 / 8, dtype=torch.float64)
    one[3] = 1 - 7e-12
    assert codebook.effective_codes(torch.stack([one, all_of_them])).tolist() == pytest.approx([1, 8])


def test_uploads_are_measured_before_they_are_read(tmp_path: Path, studio: Studio) -> None:
    Image.new("1", (8192, 4096)).save(huge := tmp_path / "huge.png")
    (broken := tmp_path / "broken.png").write_bytes(b"no picture")
    for path, said in ((huge, "8192 x 4096 pixels"), (broken, "not an image")):
        with pytest.raises(InputError, match=said):
            studio.upload(str(path))
    Image.new("LA", (40, 20)).save(grey := tmp_path / "grey.png")
    assert studio.upload(str(grey)).picture.size == (16, 16)


def test_what_visitors_write_is_text(studio: Studio) -> None:
    page, _ = next(studio.draw('<script>"', PLAIN, 1))
    assert "<script>" not in page
    assert note("<b>") == '<p class="cvq-note">&lt;b&gt;</p>'
