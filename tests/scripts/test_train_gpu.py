"""scripts/train_gpu.sh on the CPU at small width: pieces that stop, go on and end with both models."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from channelvq import CAR, CVQTokenizer

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_gpu.sh"
COMMON = "train.device=cpu train.precision=no train.batch_size=2 train.data_workers=0 data.validation_images=4"
TOKENIZER = (
    f"{COMMON} model.image_size=32 model.latent_channels=8 model.quantizer.codebook_size=32 objective.start_images=8 "
    "model.network.num_blocks=1 objective.adversarial.base_channels=8 objective.adversarial.start_step=1 "
    "objective.adversarial.ramp_steps=1 train.log_every=1"
)
GENERATOR = (
    f"{COMMON} objective.lm_steps=1 objective.stage1_steps=1 objective.train_images=8 model.max_text_tokens=64 "
    "objective.text_vocab_size=300 model.backbone.num_hidden_layers=1 model.backbone.num_attention_heads=2 "
    "model.backbone.intermediate_size=32"
)


@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform != "linux", reason="timeout of the GNU coreutils")
def test_pieces_go_on_until_both_models_are_there(tmp_path: Path) -> None:
    environment = os.environ | {
        "CVQ": f"{sys.executable} -m channelvq", "LAB": f"{sys.executable} -m lab",
        "OUT": str(tmp_path / "out"), "WIDTH": "8", "DATA": "shapes",
        "CHANNELVQ_CACHE": str(tmp_path / "cache"), "TOKENIZER_SETTINGS": TOKENIZER, "CAR_SETTINGS": GENERATOR,
        "CAR_STEPS": "3", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip

    def piece(**more: str) -> str:
        done = subprocess.run([SCRIPT], env=environment | more, capture_output=True, text=True, timeout=230)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    # So many steps that the limit comes first, wherever it comes; before the first step on a machine that is slow.
    for limit in (15, 45, 135):
        first = piece(LIMIT=str(limit), STEPS="1000000")
        assert first.splitlines()[-1] == "more: call again"
        if "stopped by SIGTERM after step" in first:
            break
    reached = json.loads((tmp_path / "out/tokenizer.json").read_text())
    assert reached["images"] == 2 * reached["step"] > 0
    assert reached["images_per_second"] == pytest.approx(reached["images"] / reached["seconds"], rel=1e-4)
    assert reached["mfu"] is None  # on a CPU
    piece(STEPS=str(reached["step"] + 2))
    assert CVQTokenizer.from_pretrained(tmp_path / "out/tokenizer/final").num_tokens == 8
    assert json.loads((tmp_path / "out/tokenizer.json").read_text())["step"] == reached["step"] + 2
    last = piece()
    assert last.splitlines()[-1].startswith("finished")
    assert CAR.from_pretrained(tmp_path / "out/scenes-car/final").num_tokens == 8
    assert json.loads((tmp_path / "out/scenes-car.json").read_text())["step"] == 3


def test_a_piece_that_fails_says_so(tmp_path: Path) -> None:
    environment = os.environ | {"CVQ": f"{sys.executable} -m channelvq", "OUT": str(tmp_path), "DATA": "shapes",
                                "TOKENIZER_SETTINGS": "train.stepz=1"}  # fmt: skip
    done = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2
    assert "train.stepz: there is no such setting" in done.stderr
