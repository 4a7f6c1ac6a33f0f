"""The study of an autoencoder, at a size that takes a moment."""

from pathlib import Path

import pytest
import torch

from lab.studies import autoencoder
from lab.studies.autoencoder import NOTHING, Run, draw, kinds, trained


def pictures(count: int) -> torch.Tensor:
    noise = torch.rand(count, 1, 4, 4, generator=torch.Generator().manual_seed(count))
    return (255 * torch.nn.functional.interpolate(noise, size=(32, 32))).byte().expand(-1, 3, -1, -1)


@pytest.mark.parametrize("middle", ["ema", NOTHING])
def test_measuring_on_the_way_changes_nothing(middle: str) -> None:
    often, _ = trained(Run(middle, 0, steps=(1, 3, 4)), pictures(60), pictures(20))
    once, _ = trained(Run(middle, 0, steps=(4,)), pictures(60), pictures(20))
    assert [measured["steps"] for measured in often] == [1, 3, 4]
    assert often[-1] == once[-1]
    assert ("use" in once[-1]) == (middle != NOTHING)


def test_the_table_tells_spread_and_collapse(tmp_path: Path) -> None:
    def record(name: str, psnr: list[float], even: list[float]) -> dict[str, object]:
        by_steps = [
            {"steps": steps, "psnr": value, "use": 0.5} | ({} if name == NOTHING else {"perplexity_ratio": ratio})
            for steps, value, ratio in zip(autoencoder.STEPS, psnr, even, strict=True)
        ]
        return {"quantizer": name, "by_steps": by_steps, "seconds": 20.0}

    records = [
        record("plain", [10, 11, 12], [0.05, 0.09, 0.2]), record("plain", [12, 13, 14], [0.3, 0.05, 0.3]),
        record("ema", [20, 21, 22], [0.5, 0.5, 0.5]), record(NOTHING, [30, 31, 32], [0, 0, 0]),
    ]  # fmt: skip
    result = {"protocol": {"n": 5, "collapsed": "..."}, "records": records}
    rows = {row[0]: row[1:] for row in kinds(result).rows}
    assert list(rows) == [NOTHING, "`ema`, the default", "`plain`"]
    assert rows["`plain`"] == [
        "11.00 (10.00 to 12.00)", "12.00 (11.00 to 13.00)", "13.00 (12.00 to 14.00)", "50.0%", "0.25 (0.20 to 0.30)",
        "1 of 2, 2 of 2, 0 of 2", "10",
    ]  # fmt: skip
    assert rows[NOTHING][3:6] == [""] * 3
    draw(result, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
