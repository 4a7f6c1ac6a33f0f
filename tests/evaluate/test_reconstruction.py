import math

import pytest
import torch
from rich.console import Console

from channelvq.errors import InputError, NotFiniteError
from channelvq.evaluate.baselines import BaselinePoint
from channelvq.evaluate.measures import Measures
from channelvq.evaluate.plots import quality_against_bytes
from channelvq.evaluate.reconstruction import ReconstructionReport, evaluate_reconstruction
from channelvq.evaluate.results import write_json


class BandTokenizer:
    """Four horizontal bands; a token is the gray level of its band, a missing one decodes to 0.0, that is 128."""

    num_tokens, codebook_size, image_size = 4, 256, 16

    def __init__(self) -> None:
        self.tokenized = 0

    def tokenize(self, images: torch.Tensor) -> torch.Tensor:
        self.tokenized += len(images)
        bands = images.unflatten(2, (4, 4)).mean(dim=(1, 3, 4))
        return ((bands + 1) * 127.5).round().long()

    def detokenize(self, ids: torch.Tensor, output: str) -> torch.Tensor:
        assert output == "tensor"
        bands = torch.zeros(len(ids), 4)
        bands[:, : ids.shape[1]] = ids / 127.5 - 1
        return bands.repeat_interleave(4, dim=1)[:, None, :, None].expand(-1, 3, -1, 16)


def banded(levels: torch.Tensor) -> torch.Tensor:
    """(n, 4) gray levels -> images of four flat bands."""
    return levels.byte().repeat_interleave(4, dim=1)[:, None, :, None].expand(-1, 3, -1, 16).contiguous()


LEVELS = torch.tensor([[0, 50, 100, 200], [255, 255, 10, 0], [128, 128, 128, 130]])


@pytest.fixture
def report() -> ReconstructionReport:
    return evaluate_reconstruction(BandTokenizer(), banded(LEVELS), batch_size=2)


def test_each_prefix_has_the_psnr_of_its_missing_bands(report: ReconstructionReport) -> None:
    assert [prefix.num_tokens for prefix in report.prefixes] == [1, 2, 4]
    for prefix in report.prefixes[:2]:
        missing = (LEVELS[:, prefix.num_tokens :] - 128.0).square().sum(dim=1) / 4
        expected = 10 * torch.log10(255**2 / missing)
        torch.testing.assert_close(prefix.per_image["psnr"], expected.double(), rtol=0, atol=1e-4)
        assert prefix.psnr.mean == pytest.approx(expected.mean().item(), abs=1e-4)
        assert prefix.psnr.low <= prefix.psnr.mean <= prefix.psnr.high
    assert report.prefixes[-1].psnr.mean == 100.0
    assert report.prefixes[-1].ssim.mean == pytest.approx(1.0)


def test_bits_and_bytes_of_each_prefix(report: ReconstructionReport) -> None:
    assert [prefix.num_bytes for prefix in report.prefixes] == [1, 2, 4]
    assert report.prefixes[-1].bits_per_pixel == 4 * 8 / 256


def test_bytes_are_rounded_up_to_whole_ones() -> None:
    tokenizer = BandTokenizer()
    tokenizer.codebook_size = 257
    report = evaluate_reconstruction(tokenizer, banded(LEVELS), prefixes=[3])
    assert report.prefixes[0].num_bytes == 4
    assert report.prefixes[0].bits_per_pixel == pytest.approx(3 * math.log2(257) / 256)


def test_use_counts_the_tokens_of_all_batches(report: ReconstructionReport) -> None:
    assert report.usage.tokens == 12
    assert report.usage.use == len(LEVELS.unique()) / 256
    assert report.usage.use_if_uniform == pytest.approx(1 - math.exp(-12 / 256))


def test_nothing_depends_on_the_batch_size_and_each_image_is_tokenized_once() -> None:
    levels = torch.randint(0, 256, (70, 4), generator=torch.Generator().manual_seed(0))
    reports = []
    for batch_size in (1, 7, 64):
        tokenizer = BandTokenizer()
        reports.append(evaluate_reconstruction(tokenizer, banded(levels), batch_size=batch_size).to_dict())
        assert tokenizer.tokenized == 70
    assert reports[0] == reports[1] == reports[2]


def test_prefixes_are_sorted_and_checked() -> None:
    images = banded(LEVELS)
    report = evaluate_reconstruction(BandTokenizer(), images, prefixes=[3, 1, 3])
    assert [prefix.num_tokens for prefix in report.prefixes] == [1, 3]
    for bad in ([], [0], [5]):
        with pytest.raises(InputError, match=r"1\.\.4"):
            evaluate_reconstruction(BandTokenizer(), images, prefixes=bad)


def test_default_prefixes_end_with_all_tokens_where_c_is_no_power_of_two() -> None:
    tokenizer = BandTokenizer()
    tokenizer.num_tokens = 3
    report = evaluate_reconstruction(tokenizer, banded(LEVELS))
    assert [prefix.num_tokens for prefix in report.prefixes] == [1, 2, 3]


def test_images_of_another_size_are_refused_rather_than_resized() -> None:
    with pytest.raises(InputError, match="16 x 16 pixels, got 32 x 16"):
        evaluate_reconstruction(BandTokenizer(), torch.zeros(1, 3, 32, 16, dtype=torch.uint8))
    with pytest.raises(InputError, match="batch_size"):
        evaluate_reconstruction(BandTokenizer(), banded(LEVELS), batch_size=0)


def test_smallest_prefix_for_a_quality(report: ReconstructionReport) -> None:
    first = report.prefixes[0].psnr.mean
    assert report.smallest_prefix_for(first) is report.prefixes[0]
    assert report.smallest_prefix_for(first + 1e-6) is report.prefixes[1]
    assert report.smallest_prefix_for(101.0) is None


def test_record_metrics_are_json(report: ReconstructionReport, tmp_path) -> None:
    metrics = report.to_dict()
    assert {"psnr", "ssim", "use", "use_if_uniform", "perplexity", "bits_per_pixel"} <= metrics.keys()
    assert metrics["psnr"] == metrics["prefixes"][-1]["psnr"] == 100.0
    write_json(tmp_path / "metrics.json", metrics)


def test_table_shows_each_prefix(report: ReconstructionReport) -> None:
    console = Console(width=80, record=True, file=None, quiet=False)
    with console.capture() as capture:
        console.print(report.table())
    text = capture.get()
    assert "100.00" in text
    for prefix in report.prefixes:  # whole at 80 columns
        for name, digits in (("psnr", 2), ("ssim", 3)):
            interval = prefix.intervals[name]
            assert f"{interval.low:.{digits}f}.. {interval.high:.{digits}f}" in text
    assert f"{report.prefixes[0].psnr.mean:.2f}" in text
    assert "12 tokens" in text


def test_plot_is_written_without_touching_pyplot(report: ReconstructionReport, tmp_path) -> None:
    curve = [BaselinePoint(budget=2, num_bytes=2.0, psnr=14.0, ssim=0.4, fits=1.0)]
    quality_against_bytes(report, {"jpeg": curve}, tmp_path / "plots" / "quality.svg")
    svg = (tmp_path / "plots" / "quality.svg").read_text()
    assert svg.count("<path") > 10
    quality_against_bytes(report, {}, tmp_path / "quality.png")
    assert (tmp_path / "quality.png").read_bytes()[:4] == b"\x89PNG"


def test_one_image_has_no_interval_in_the_table() -> None:
    report = evaluate_reconstruction(BandTokenizer(), banded(LEVELS[:1]))
    assert "nan" not in report.markdown()
    assert math.isnan(report.prefixes[0].psnr.low)


@pytest.mark.parametrize(
    ("measure", "error", "message"),
    [
        (
            lambda x, y: torch.ones(1),
            InputError,
            r"'own': expected a number for each of 3 images, .* got \(1,\)",
        ),
        (lambda x, y: torch.ones(len(x), 2), InputError, r"metric 'own': .* got \(3, 2\)"),
        (lambda x, y: 1.0, InputError, "metric 'own': .* got float"),
        (lambda x, y: torch.full((len(x),), math.nan), NotFiniteError, "metric 'own': it is NaN"),
    ],
)
def test_a_metric_that_gives_something_else_is_named(measure, error: type, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=message):
        evaluate_reconstruction(BandTokenizer(), banded(LEVELS), measures=Measures({"own": measure}))
