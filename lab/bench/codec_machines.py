"""`python -m lab bench codec-machines`: the same bytes by other threads, batches, instruction sets, torch versions.

A child process for each setting writes scores and files of eight scenes, by the bundled generator, and pictures of 72
held-out images, by the bundled tokenizer; the parent compares them.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from PIL import Image

from channelvq.car.model import CAR
from channelvq.codec import compress_ids, decompress
from channelvq.codec.car_scores import CARScores
from channelvq.codec.levels import MARGIN
from channelvq.errors import InputError
from channelvq.evaluate.held_out import KINDS, held_out
from channelvq.evaluate.results import write_json
from channelvq.evaluate.tables import TextTable
from channelvq.images import normalize
from channelvq.report.token_sets import scenes as scenes_of
from channelvq.tokenizer import CVQTokenizer
from channelvq.train.car_task import CARRecipe
from channelvq.train.run import load_recipe
from lab.bench.timing import machine
from lab.bundle.generator import RECIPE
from lab.study import Tables

IMAGES = 8
PICTURES = 24  # of each kind
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
# Name: environment and the child's arguments (threads, images at once).
SETTINGS: dict[str, tuple[dict[str, str], int, int]] = {
    "1 thread": ({}, 1, 8),
    "2 threads": ({}, 2, 8),
    "one image at a time": ({}, 1, 1),
    "AVX2": (AVX2, 1, 8),
    "no AVX": ({"ATEN_CPU_CAPABILITY": "default"}, 1, 8),
}


def child(folder: Path, threads: int, batch: int) -> None:
    """Write what one setting gives: scores.npy (float64), pixels.npy and the files one after the other.

    folder: a subfolder of the one with ids.npy, of the generator, and shown.npy, of the bundled tokenizer.
    """
    torch.set_num_threads(threads)
    car = CAR.from_pretrained("bundled")
    tokens, shown = (torch.from_numpy(np.load(folder.parent / f"{name}.npy", allow_pickle=False))
                     for name in ("ids", "shown"))  # fmt: skip
    scores = CARScores(car)
    walk = scores.start([""] * IMAGES)
    np.save(folder / "scores.npy", np.stack([walk.logits(tokens[:, :k]) for k in range(0, tokens.shape[1], 7)]))
    files = list[bytes]()
    for model in (None, scores):
        for start in range(0, IMAGES if model is None or batch > 1 else 1, batch):  # alone, one is compared: slow
            files += compress_ids(tokens[start : start + batch], car.tokenizer, car=model)
    tokenizer, pictures = CVQTokenizer.from_pretrained("bundled"), list[Image.Image]()
    for part in shown.split(batch):
        pictures += decompress(compress_ids(part, tokenizer), tokenizer)
    np.save(folder / "pixels.npy", np.stack([np.asarray(picture) for picture in pictures]))
    np.save(folder / "files.npy", np.array([file.hex() for file in files]))
    (folder / "torch").write_text(f"{torch.__version__} {torch.backends.cpu.get_cpu_capability()}")


def run(others: list[Path], path: Path | None) -> dict[str, Any]:
    """Compare all settings with the first; others: Python programs that have another torch."""
    settings = {name: (sys.executable, *rest) for name, rest in SETTINGS.items()}
    settings |= {f"other torch {i + 1}": (str(program), {}, 1, 8) for i, program in enumerate(others)}
    car = CAR.from_pretrained("bundled")
    scenes = scenes_of(load_recipe(RECIPE, of=CARRecipe), car.tokenizer, "test")
    images = torch.stack([scenes[i].image for i in range(IMAGES)])
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        np.save(Path(temporary, "ids.npy"), car.tokenizer.tokenize(normalize(images)).numpy())
        np.save(Path(temporary, "shown.npy"), _shown())
        for name, (program, environment, threads, batch) in settings.items():
            (folder := Path(temporary, name.replace(" ", "-"))).mkdir()
            call = [program, "-m", "lab.bench.codec_machines", str(folder), str(threads), str(batch)]
            done = subprocess.run(call, env=os.environ | environment, capture_output=True, text=True)
            if done.returncode:
                raise InputError(f"{name}: {program} failed: {done.stderr.strip().splitlines()[-1:]}")
            arrays = {
                kind: np.load(folder / f"{kind}.npy", allow_pickle=False) for kind in ("scores", "pixels", "files")
            }
            found[name] = arrays | {"torch": (folder / "torch").read_text()}
    base = found["1 thread"]
    records = [{"setting": name, **_compared(one, base)} for name, one in found.items()]
    counts = {"images": IMAGES, "pictures": PICTURES * len(KINDS), "margin": MARGIN}
    # By which results of two machines can be compared.
    digests = {kind: hashlib.sha256(base[kind].tobytes()).hexdigest() for kind in ("files", "pixels")}
    result = {"protocol": machine() | counts | {"digests": digests}, "records": records}
    if path is not None:
        write_json(path, result)
    return result


def _shown() -> Int64[np.ndarray, "n K"]:
    tokenizer = CVQTokenizer.from_pretrained("bundled")
    images = torch.cat([held_out(kind, PICTURES, tokenizer.image_size) for kind in KINDS])
    return tokenizer.tokenize(normalize(images)).numpy()


def _compared(one: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    files = [*zip(one["files"][:IMAGES], base["files"][:IMAGES], strict=True)]
    coded = [*zip(one["files"][IMAGES:], base["files"][IMAGES:], strict=False)]
    return {
        "torch": one["torch"], "score_difference": float(np.abs(one["scores"] - base["scores"]).max()),
        "static_files_equal": sum(map(_same, files)),
        "car_files_equal": sum(map(_same, coded)), "car_files": len(coded),
        "pixels_other": int((one["pixels"] != base["pixels"]).sum()), "pixels": one["pixels"].size,
        "largest_pixel_difference": int(np.abs(one["pixels"].astype(int) - base["pixels"]).max()),
    }  # fmt: skip


def _same(pair: tuple[str, str]) -> bool:
    return pair[0] == pair[1]


def shown(result: dict[str, Any]) -> TextTable:
    """A row for each setting, compared with one thread and eight images at once."""
    n = result["protocol"]["images"]
    rows = [
        [r["setting"], r["torch"], f"{r['score_difference']:.1e}", f"{r['static_files_equal']} of {n}",
         f"{r['car_files_equal']} of {r['car_files']}", f"{r['pixels_other']} of {r['pixels']:,}",
         str(r["largest_pixel_difference"])]
        for r in result["records"]
    ]  # fmt: skip
    headings = ("setting", "torch", "scores differ by (nats)", "equal files, static", "equal files, CAR",
                "other pixel values", "by at most")  # fmt: skip
    note = f"Scores may differ by {result['protocol']['margin']:.0e}. {result['protocol']['machine']}."
    return TextTable(headings, rows, note=note)


TABLES: Tables = {f"codec-machines-{name}": (f"codec-machines-{name}.json", shown) for name in ("avx2", "avx512")}

if __name__ == "__main__":
    child(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
