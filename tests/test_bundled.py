"""What ships in the package: small, loadable, and what the result file was measured on."""

import json
from pathlib import Path

import pytest
import torch

from channelvq import CAR, CVQTokenizer
from channelvq.codec import CodeTables, compress_ids, read_header
from channelvq.data.drawn.scenes import SceneSource
from channelvq.demo import PROMPTS, run
from channelvq.evaluate.metrics import psnr
from channelvq.images import normalize, to_uint8
from channelvq.nn.modes import row_independent_kernels
from channelvq.pretrained import CODE_TABLES, weights_sha256
from channelvq.quantize.residual import ResidualSimVQCodebook
from channelvq.train.car_task import CARRecipe, CARTask
from channelvq.train.run import load_recipe

ROOT = Path(__file__).parents[1]
BUNDLED = ROOT / "src/channelvq/bundled"
GENERATOR = json.loads((ROOT / "results/bundled-generator.json").read_text())
RESULT = json.loads((ROOT / "results/bundled-tokenizer.json").read_text())


@pytest.fixture(scope="module")
def tokenizer() -> CVQTokenizer:
    return CVQTokenizer.from_pretrained("bundled")


def test_is_the_small_scale_standard_and_small(tokenizer: CVQTokenizer) -> None:
    assert (tokenizer.image_size, tokenizer.num_tokens, tokenizer.codebook_size) == (64, 64, 4096)
    assert (BUNDLED / "tokenizer/model.safetensors").stat().st_size <= 20e6


def test_results_were_measured_on_these_weights(tokenizer: CVQTokenizer) -> None:
    digest = weights_sha256(tokenizer)
    assert {record["protocol"]["tokenizer_sha256"] for record in RESULT["records"]} == {digest}
    card = (BUNDLED / "tokenizer/README.md").read_text()
    for record in RESULT["records"]:
        assert f"{record['metrics']['psnr']:.2f}" in card


def test_psnr_rises_with_every_doubling_of_the_prefix_on_held_out_images() -> None:
    for record in RESULT["records"]:
        values = [prefix["psnr"] for prefix in record["metrics"]["prefixes"]]
        assert len(values) == 7
        assert values == sorted(values)


def test_no_codeword_is_nearer_and_ids_do_not_depend_on_the_batch(tokenizer: CVQTokenizer) -> None:
    """A token stands for what those before it left of its numbers, and is the nearest of W_k c_n to that."""
    x = torch.rand(10, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ids = tokenizer.tokenize(x)
    quantizer = tokenizer.quantizer.quantizer
    assert isinstance(quantizer, ResidualSimVQCodebook)
    with torch.no_grad(), row_independent_kernels(x.device):
        z = tokenizer.encoder(x[:8]).flatten(2).double()
    left = [dict[int, float]() for _ in z]
    for k, (numbers, maps) in enumerate(zip(quantizer.numbers.tolist(), quantizer.weight.double(), strict=True)):
        words = quantizer.basis.double() @ maps.T
        token = torch.tensor([[value - spent.get(n, 0.0) for n, value in zip(numbers, row.tolist(), strict=True)]
                              for spent, row in zip(left, z[:, k], strict=True)], dtype=torch.float64)  # fmt: skip
        distances = torch.cdist(token, words).square()
        chosen = distances.gather(1, ids[:8, k : k + 1])[:, 0]
        assert (chosen <= distances.amin(1) * (1 + 1e-5) + 1e-9).all()
        for spent, word in zip(left, words[ids[:8, k]].tolist(), strict=True):
            for n, value in zip(numbers, word, strict=True):
                spent[n] = spent.get(n, 0.0) + value
    assert torch.equal(tokenizer.tokenize(x[9:]), ids[9:])


def test_demo_draws_its_pictures_and_beats_noise(tmp_path: Path) -> None:
    rows = run(tmp_path)
    assert (tmp_path / "contact-sheet.png").is_file()
    assert (tmp_path / "generated.png").is_file()
    assert len(list(tmp_path.glob("prompt-*.png"))) == len(PROMPTS)
    assert len(list(tmp_path.glob("*.png"))) >= 10
    ours = [row for row in rows if row.method == "CVQ"]
    assert [row.tokens for row in ours] == [1, 2, 4, 8, 16, 32, 64]
    assert [row.psnr for row in ours] == sorted(row.psnr for row in ours)
    assert {row.method for row in rows} == {"CVQ", "PCA", "JPEG", "WebP"}


def test_an_image_comes_back_better_than_its_mean_colour(tokenizer: CVQTokenizer) -> None:
    steps = torch.linspace(0, 255, 64)
    ramp = torch.stack([steps.expand(64, 64), steps[:, None].expand(64, 64), torch.full((64, 64), 90.0)])
    image = ramp.round().to(torch.uint8)[None]
    restored = to_uint8(tokenizer.detokenize(tokenizer.tokenize(normalize(image)), "tensor"))
    flat = image.float().mean((2, 3), keepdim=True).round().to(torch.uint8).expand_as(image).contiguous()
    assert psnr(restored, image) > psnr(flat, image) + 6


@pytest.fixture(scope="module")
def car() -> CAR:
    return CAR.from_pretrained("bundled")


def test_the_generator_is_small_and_what_its_results_were_measured_on(car: CAR) -> None:
    assert sum(path.stat().st_size for path in (BUNDLED / "car").rglob("*") if path.is_file()) <= 40e6
    assert (car.num_tokens, car.codebook_size, car.tokenizer.image_size) == (64, 4096, 64)
    assert GENERATOR["protocol"]["tokenizer_sha256"] == weights_sha256(car.tokenizer)
    metrics = GENERATOR["records"][0]["metrics"]
    assert f"{metrics['nats']:.3f}" in (BUNDLED / "car/README.md").read_text()
    assert metrics["nats"] < metrics["nats_shuffled"] < metrics["nats_unigram"]


def test_the_recipe_of_the_generator_goes_on_from_it(car: CAR, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As docs/training.md says; the model of the recipe is that of the generator, setting for setting."""
    monkeypatch.setenv("CHANNELVQ_CACHE", str(tmp_path))
    few = ("data.sources.scenes.sprites=shapes", "objective.train_images=8", "data.validation_images=8")
    start = ("objective.start_from=bundled", "tokenizer=start_from", f"train.output_dir={tmp_path}/run")
    task = CARTask(load_recipe("small/bundled-car", (*few, *start), of=CARRecipe))
    assert weights_sha256(task.car) == weights_sha256(car)


def test_images_are_drawn_for_their_prompts(car: CAR) -> None:
    prompts = ["a photo of a bus", "a photo of four apples", "a photo of a green dog", "a photo of a cat above a chair"]
    ids = car.generate(prompts, seed=0).ids
    own = car.score(prompts, ids).sum(1)
    other = car.score(prompts[1:] + prompts[:1], ids).sum(1)
    assert (own > other).all()


def test_generated_images_stand_out_from_a_backdrop(car: CAR) -> None:
    images = to_uint8(
        car.tokenizer.detokenize(car.generate(["a photo of a red car"] * 4, seed=0).ids, "tensor")
    ).float()
    middle, corners = images[:, :, 24:40, 24:40].mean((2, 3)), images[:, :, [2, 2, -3, -3], [2, -3, 2, -3]].mean(2)
    assert ((middle - corners).abs().amax(1) > 20).float().mean() >= 0.5


@pytest.mark.parametrize("folder", ["tokenizer", "car/tokenizer"])
def test_code_tables_are_those_of_this_tokenizer_and_files_reach_their_entropy(folder: str) -> None:
    """After a retraining: `python -m lab bundle tables`."""
    tokenizer = CVQTokenizer.from_pretrained(BUNDLED / folder)
    assert (BUNDLED / folder / CODE_TABLES).stat().st_size < 500_000
    tables = CodeTables.of(tokenizer)
    scenes = SceneSource(size=tokenizer.image_size, split="test", sprites="shapes")
    images = torch.stack([scenes.sample(i, torch.Generator().manual_seed(i)).image for i in range(8)])
    ids = tokenizer.tokenize(normalize(images))
    entropy = float(tables.bits(ids).sum(1).mean()) / 8
    files = compress_ids(ids, tokenizer, chunk_tokens=tokenizer.num_tokens)  # one checksum, of one byte
    coded = sum(read_header(file)[0].ends[-1] - 1 for file in files) / len(files)
    assert entropy < 96
    assert coded < 1.01 * entropy
