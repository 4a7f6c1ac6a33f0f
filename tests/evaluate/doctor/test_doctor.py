"""The doctor: figures by closed forms, what is planted is found, the verdict, the pictures and the command."""

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from tests.evaluate.doctor.tiny import CHANNELS, CODES, noise, tiny

from channelvq import CAR, CVQTokenizer
from channelvq.errors import InputError
from channelvq.evaluate.doctor import examine as doctor
from channelvq.evaluate.doctor import pictures as doctor_pictures
from channelvq.evaluate.doctor.examine import (
    DoctorReport,
    Observation,
    diagnose,
    effective_dimensions,
    entropy_bits,
    examine,
    knockout_loss,
    near_duplicates,
    observe,
)
from channelvq.evaluate.doctor.findings import findings, verdict
from channelvq.evaluate.doctor.page import html_page, text
from channelvq.evaluate.findings import usage_findings
from channelvq.evaluate.held_out import held_out
from channelvq.images import normalize
from channelvq.quantize.axis import to_vectors
from channelvq.quantize.channel_vq import QuantizerConfig
from channelvq.quantize.codebook import PlainConfig
from channelvq.quantize.tokenwise import TokenwiseSimVQConfig
from channelvq.quantize.usage import CodebookUsage


@pytest.fixture(scope="module")
def scenes() -> torch.Tensor:
    return held_out("scenes", 16)


@pytest.fixture(scope="module")
def bundled(scenes: torch.Tensor) -> DoctorReport:
    return examine(CVQTokenizer.from_pretrained("bundled"), scenes[:8])[0]


def seen(ids: torch.Tensor, table: torch.Tensor, errors: torch.Tensor, variances: torch.Tensor) -> Observation:
    """What `observe` would give for these ids (n, K) and mean squares (K,)."""
    usage = CodebookUsage(len(table))
    usage.update(ids)
    assert usage.position_counts is not None
    k, dim = ids.shape[1], table.shape[1]
    return Observation(
        axis="channel", table=table.double(), usage=usage.result(), counts=usage.position_counts,
        errors=errors.double(), variances=variances.double(), feature_squares=variances.double(),
        dimensions=torch.ones(k, dtype=torch.float64), code_squares=variances.double(),
        mean_codes=torch.zeros(k, dim, dtype=torch.float64),
        features=torch.zeros(0, dim), feature_positions=torch.zeros(0, dtype=torch.int64),
    )  # fmt: skip


@pytest.fixture
def healthy() -> DoctorReport:
    """32 codes that each of 4 positions uses 8 times: nothing to find."""
    ids = torch.arange(32).repeat(8)[:, None].expand(-1, 4).contiguous()
    table = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    return diagnose(seen(ids, table, torch.full((4,), 0.3), torch.ones(4)), torch.full((4,), 0.5).double())


# Closed forms


def test_entropy_of_constant_and_uniform_positions() -> None:
    counts = torch.zeros(5, 64, dtype=torch.int64)
    counts[0, 3] = 100  # constant
    counts[1] = 10  # uniform
    counts[2, :2] = 50  # a fair coin
    counts[3] = 1  # every id once: as far as can be told, uniform
    counts[4, 0] = 1  # a single token
    assert entropy_bits(counts).tolist() == pytest.approx([0.0, 6.0, 1.0, 6.0, 0.0], abs=1e-6)


def test_effective_dimensions() -> None:
    covariances = torch.stack([torch.eye(6), torch.diag(torch.tensor([4.0, 4, 4, 0, 0, 0])), torch.ones(6, 6)]).double()
    means = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)).double()
    moments = covariances + means[:, :, None] * means[:, None, :]
    assert effective_dimensions(moments, means).tolist() == pytest.approx([6.0, 3.0, 1.0])
    assert effective_dimensions(moments - covariances, means).tolist() == [0.0] * 3  # what does not vary


def test_entropy_of_few_tokens_is_nearer_than_counting() -> None:
    p = torch.exp(-torch.arange(4096) / 400.0).double()
    p /= p.sum()
    generator = torch.Generator().manual_seed(0)
    ids = torch.multinomial(p.expand(20, -1), 512, replacement=True, generator=generator)
    counts = torch.zeros(20, 4096, dtype=torch.int64).scatter_add_(1, ids, torch.ones_like(ids))
    true = torch.special.entr(p).sum().item() / math.log(2)
    counted = torch.special.entr(counts / 512).sum(dim=1).mean().item() / math.log(2)
    assert counted < true - 1.5
    assert entropy_bits(counts).mean().item() == pytest.approx(true, abs=0.4)


def test_figures_of_constructed_positions() -> None:
    ids = torch.stack([torch.full((64,), 5), torch.arange(64) % 8], dim=1)
    table = torch.arange(8.0)[:, None].expand(-1, 3) * 100
    errors, variances = torch.tensor([0.0, 1.0]), torch.tensor([0.0, 4.0])
    report = diagnose(seen(ids, table, errors, variances), torch.zeros(2).double())
    assert report.position_use.tolist() == [1 / 8, 1.0]
    assert report.position_perplexity.tolist() == pytest.approx([1.0, 8.0])
    assert report.position_bits.tolist() == pytest.approx([0.0, 3.0])
    assert math.isnan(report.position_errors[0].item())  # what does not vary has no relative error
    assert report.position_errors[1].item() == report.relative_error == 0.25
    assert report.gaussian_error == pytest.approx(8 ** (-2 / 3))
    assert report.num_images == 64
    assert report.usage.use == 1.0
    assert report.dead == ()


def test_planted_dead_and_duplicate_codes_are_found_by_index(monkeypatch: pytest.MonkeyPatch) -> None:
    table = torch.randn(50, 16, generator=torch.Generator().manual_seed(0)) + 1000
    table[17] = table[4]
    table[30] = table[4] + 1e-3
    table[31] = table[4] + 1.0
    ids = torch.arange(50)[~torch.isin(torch.arange(50), torch.tensor([2, 17, 40]))].repeat(9)[:, None]
    observation = seen(ids, table, torch.tensor([4.0]), torch.tensor([16.0]))
    for tile in (doctor._TILE, 7):
        monkeypatch.setattr(doctor, "_TILE", tile)
        report = diagnose(observation, torch.zeros(1).double())
        assert report.dead == (2, 17, 40)
        assert report.duplicates == ((17, 4), (30, 4))
    exact = near_duplicates(table.double(), 0.0)
    assert (exact != torch.arange(50)).nonzero().flatten().tolist() == [17]


# A tokenizer


@pytest.mark.parametrize("axis", ["channel", "patch"])
def test_observation_is_that_of_the_tokenizer(axis: str) -> None:
    tokenizer, images = tiny(axis), noise(11)
    seen = observe(tokenizer, images)
    ids = tokenizer.tokenize(normalize(images))
    for position, counts in enumerate(seen.counts):
        assert torch.equal(counts, torch.bincount(ids[:, position], minlength=CODES))
    z = to_vectors(tokenizer.latents(normalize(images)), tokenizer.config.axis).double()
    e = tokenizer.quantizer.codes().detach().double()[ids]
    torch.testing.assert_close(seen.errors, (z - e).square().sum(2).mean(0))
    torch.testing.assert_close(seen.variances, z.var(0).sum(1))
    torch.testing.assert_close(seen.mean_codes, e.mean(0))
    torch.testing.assert_close(seen.features, z.flatten(0, 1).float())  # few enough to be kept all
    assert seen.feature_positions.tolist() == list(range(z.shape[1])) * 11


def test_a_channel_that_the_decoder_ignores_costs_nothing() -> None:
    tokenizer = tiny()
    first = tokenizer.decoder.layers[0]
    assert isinstance(first, torch.nn.Conv2d)
    with torch.no_grad():
        first.weight[:, 2] = 0
    loss = knockout_loss(tokenizer, noise(3))
    assert loss[2].item() == 0.0
    assert (loss != 0).sum() == CHANNELS - 1


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(InputError, match="16 x 16 pixels, got 8 x 16"):
        observe(tiny(), torch.zeros(1, 3, 8, 16, dtype=torch.uint8))


# The verdict


def test_codewords_of_many_numbers_alike_are_used_but_empty(scenes: torch.Tensor) -> None:
    report, _ = examine(CAR.from_pretrained("bundled").tokenizer, scenes)
    assert "used but empty" in [each.name for each in findings(report)]
    assert float(report.position_dimensions.median()) > 5


def test_the_bundled_tokenizer_is_healthy(bundled: DoctorReport) -> None:
    found = findings(bundled)
    assert [each.name for each in found] == ["too few images to tell"]
    assert verdict(found) == "healthy, as far as so few tokens can tell"
    assert bundled.duplicates == ()
    assert (bundled.knockout[:3] > 0).all()


def test_a_collapsed_codebook_gets_its_remedy(scenes: torch.Tensor) -> None:
    bundled = CAR.from_pretrained("bundled").tokenizer
    tokenizer = CVQTokenizer(replace(bundled.config, quantizer=PlainConfig(codebook_size=4096))).eval()
    tokenizer.encoder.load_state_dict(bundled.encoder.state_dict())
    tokenizer.decoder.load_state_dict(bundled.decoder.state_dict())
    heap = torch.empty(4086, 64).uniform_(-1 / 4096, 1 / 4096, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokenizer.quantizer.codes()[:10] = bundled.quantizer.codes()[:10]
        tokenizer.quantizer.codes()[10:] = heap + 30  # ten codes win everything, the others are where no feature is
    found = findings(diagnose(observe(tokenizer, scenes), torch.zeros(64).double()))
    assert (found[0].name, found[0].level) == ("collapsed codebook", "problem")
    assert "model.quantizer.start=data" in found[0].remedy
    assert "0003" in found[0].remedy
    assert {"high quantization error", "duplicate codes"} <= {each.name for each in found}
    assert verdict(found).startswith("1 problem and ")


def test_nothing_is_found_in_a_healthy_report(healthy: DoctorReport) -> None:
    assert findings(healthy) == []
    assert verdict([]) == "healthy"


@pytest.mark.parametrize(
    ("change", "name", "remedy"),
    [
        ({"relative_error": 0.95}, "high quantization error", "codebook_size"),
        ({"relative_error": 0.55}, "used but empty", "simvq-tokenwise"),
        ({"code_norm": 0.1}, "features run away", "beta"),
        ({"duplicates": ((1, 0),)}, "duplicate codes", "start_images"),
        ({"position_bits": torch.tensor([5.0, 0.2, 5, 5])}, "silent tokens", "latent_channels"),
        ({"position_errors": torch.tensor([0.3, 0.3, 1.5, 0.3])}, "tokens worse than their mean", "start=data"),
    ],
)
def test_each_finding_names_its_remedy(healthy: DoctorReport, change: dict, name: str, remedy: str) -> None:
    found = findings(replace(healthy, **change))
    assert [each.name for each in found] == [name]
    assert remedy in found[0].remedy


def test_findings_of_use_alone(healthy: DoctorReport) -> None:
    usage = healthy.usage

    def names(**change: float) -> list[str]:
        return [each.name for each in usage_findings(replace(usage, **change), 32)]

    assert names() == []
    assert names(use=0.05, perplexity=1.5) == ["collapsed codebook"]
    assert names(use=0.05, perplexity=1.5, tokens=100) == ["collapsed codebook"]
    assert names(use=0.6, perplexity=12.0) == ["low use"]
    assert names(use=0.6, perplexity=12.0, tokens=100) == ["too few images to tell"]
    assert names(use=0.9, perplexity=8.0) == ["uneven use"]


def test_a_single_image_is_no_ground_for_warnings() -> None:
    told: list[tuple[int, int]] = []
    report, _ = examine(tiny(), noise(1), lambda done, total: told.append((done, total)))
    assert told == [(i + 1, 1 + CHANNELS) for i in range(1 + CHANNELS)]  # one share of images, and each token
    assert all(each.level == "note" for each in findings(report))
    assert math.isnan(report.relative_error)  # one image does not vary


def test_copies_of_a_picture_are_no_ground_for_a_verdict(scenes: torch.Tensor) -> None:
    once, many = (examine(CVQTokenizer.from_pretrained("bundled"), scenes[:1].repeat(n, 1, 1, 1))[0] for n in (1, 40))
    assert str(many.to_dict()) == str(once.to_dict())  # nan among them
    assert all(each.level == "note" for each in findings(many))


# The report


def test_terminal_text_says_what_was_found(healthy: DoctorReport) -> None:
    console = Console(width=200, record=True, file=None)
    with console.capture() as capture:
        console.print(text(replace(healthy, code_norm=0.1), "my[tok]"))
    assert "my[tok]: 1 warning" in capture.get()
    assert "features run away" in capture.get()
    assert "model.quantizer.beta" in capture.get()


@pytest.mark.parametrize("quantizer", [None, TokenwiseSimVQConfig(codebook_size=CODES, rank=3)])
@pytest.mark.parametrize("axis", ["channel", "patch"])
def test_all_pictures_of_either_axis(axis: str, quantizer: QuantizerConfig | None) -> None:
    tokenizer, images = tiny(axis, quantizer), noise(20)
    report, seen = examine(tokenizer, images)
    drawn = doctor_pictures.pictures(tokenizer, images, report, seen)
    assert set(drawn) == {"tokens", "atlas", "map", "knockout"}
    for image, caption in drawn.values():
        assert len(np.unique(np.asarray(image))) > 10
        assert axis in caption
    assert "t-SNE" in drawn["map"][1]


def test_map_falls_back_to_the_main_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    points = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)).double()
    monkeypatch.setitem(sys.modules, "sklearn.manifold", None)
    plane, method = doctor_pictures._on_a_plane(points)
    assert method == "PCA"
    centred = points - points.mean(dim=0)
    values = torch.linalg.svdvals(centred)[:2]
    torch.testing.assert_close(plane.square().sum(dim=0), values.square())
    assert doctor_pictures._on_a_plane(points[:1, :1])[0].tolist() == [[0.0, 0.0]]
    assert doctor_pictures._on_a_plane(torch.ones(300, 4).double())[1] == "PCA"


def test_page_is_escaped(healthy: DoctorReport) -> None:
    page = html_page("<b>&tok", '"data"$x', replace(healthy, dead=tuple(range(3000))), {})
    assert "<b>&tok" not in page
    assert "&lt;b&gt;&amp;tok" in page
    assert "&quot;data&quot;$x" in page
    assert "and 2000 more" in page


# The command
