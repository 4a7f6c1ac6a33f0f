"""The walk of CONTRIBUTING.md, taken: a package of a stranger adds a quantizer, a source and a metric."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PAGE = Path(__file__).parents[1] / "CONTRIBUTING.md"
TINY = ("model.image_size=32", "model.latent_channels=4", "model.network.base_channels=8", "train.steps=2",
        "model.quantizer.codebook_size=16", "data.validation_images=8", "objective.start_images=8",
        "train.batch_size=4", "train.device=cpu", "train.threads=1")  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages that holds `guest` as the page has it, and what an installer writes of it."""
    site, text = tmp_path_factory.mktemp("site"), PAGE.read_text(encoding="utf-8")
    files = re.findall(r"```python\n# (guest/\w+\.py)\n(.*?)```", text, re.DOTALL)
    assert len(files) == 3
    for name, code in files:
        (site / name).parent.mkdir(exist_ok=True)
        (site / name).write_text(code)
    (toml,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    points = tomllib.loads(toml)["project"]["entry-points"]["channelvq.plugins"]
    info = site / "guest-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: guest\nVersion: 1.0\n")
    lines = (f"{name} = {module}\n" for name, module in points.items())
    (info / "entry_points.txt").write_text("[channelvq.plugins]\n" + "".join(lines))
    return site


def cvq(site: Path, here: Path, *words: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, (str(site), *map(str, sys.path))))
    return subprocess.run(
        [sys.executable, "-m", "channelvq", *words], cwd=here, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_the_walk(site: Path, tmp_path: Path) -> None:
    commands = re.findall(r"^cvq (.*)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    train, evaluate = (re.findall(r'"([^"]*)"|(\S+)', command) for command in commands)
    trained = cvq(site, tmp_path, *(a or b for a, b in train), *TINY)
    assert trained.returncode == 0, trained.stderr
    (tmp_path / "pictures").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    for number, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / "pictures" / f"{number}.png")
    evaluated = cvq(site, tmp_path, *(a or b for a, b in evaluate), "--json", "figures.json")
    assert evaluated.returncode == 0, evaluated.stderr
    assert "largest" in evaluated.stdout
    result = json.loads((tmp_path / "figures.json").read_text())
    assert result["records"][0]["quantizer"] == "fixed"
    assert 0 < result["records"][0]["metrics"]["largest_error"] <= 255
    assert "0 to 255" in result["protocol"]["pair_metrics"]["largest_error"]


def test_without_the_package_its_kinds_are_unknown(tmp_path: Path) -> None:
    refused = cvq(tmp_path, tmp_path, "train", "small/smoke", "model.quantizer.kind=fixed")
    assert refused.returncode == 2
    assert "kind is plain, ema, simvq" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_name_that_is_taken_is_refused() -> None:
    from channelvq.errors import InputError
    from channelvq.quantize.registry import QUANTIZERS

    with pytest.raises(InputError, match="quantizer 'ema' is there already"):
        QUANTIZERS.register("ema", QUANTIZERS["plain"])
