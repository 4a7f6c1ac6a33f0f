"""`python -m lab bench onnx`: the decoder of the ONNX files with its weights as float32 and as int8.

The same held-out pictures, tokenized once by encoder.onnx, through both decoders; times are of the processor, for a
batch of one, with the int8 matrices made float32 at each call (as by default) or once when the file is loaded.
"""

import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from channelvq import CVQTokenizer
from channelvq.evaluate.held_out import held_out
from channelvq.evaluate.metrics import mean_with_interval, psnr
from channelvq.evaluate.results import git_revision, library_versions, write_json
from channelvq.evaluate.tables import TextTable
from channelvq.images import normalize
from channelvq.images.tensors import to_uint8
from channelvq.onnx_export import DECODER, ENCODER, export_onnx, store_as_bytes
from lab.bench.timing import machine
from lab.clothes import pictures
from lab.study import Tables

IMAGES = 256
DATA = {"bundled": ("emoji", "photos", "scenes"), "bundled-fashion": ("fashion-mnist",)}
AT_LOAD = ("session.disable_quant_qdq", "1")  # ONNX Runtime then makes constant matrices float32 when it loads them
ROUNDS = 15


def _session(path: Path, *settings: tuple[str, str]) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    for key, value in settings:
        options.add_session_config_entry(key, value)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _pictures(data: str, size: int) -> UInt8[Tensor, "n 3 h w"]:
    return pictures("test", IMAGES)[0] if data == "fashion-mnist" else held_out(data, IMAGES, size)


def _decoded(decoder: Any, ids: np.ndarray) -> UInt8[Tensor, "n 3 h w"]:
    parts = [decoder.run(None, {"ids": part, "num_tokens": np.array(ids.shape[1])})[0] for part in np.split(ids, 32)]
    return to_uint8(torch.from_numpy(np.concatenate(parts)))


def _milliseconds(decoders: dict[str, Any], ids: np.ndarray) -> dict[str, float]:
    """Of the processor, for a picture alone: the median over rounds, in which each takes its turn."""
    taken: dict[str, list[float]] = {name: [] for name in decoders}
    for _ in range(ROUNDS):
        for name, decoder in decoders.items():
            began = time.process_time()
            decoder.run(None, {"ids": ids[:1], "num_tokens": np.array(ids.shape[1])})
            taken[name].append(time.process_time() - began)
    return {name: 1000 * statistics.median(values) for name, values in taken.items()}


def _records(name: str, folder: Path) -> list[dict[str, Any]]:
    tokenizer, records = CVQTokenizer.from_pretrained(name), []
    check = export_onnx(tokenizer, folder / "float32")
    small = folder / "int8.onnx"
    shutil.copy(folder / "float32" / DECODER, small)
    store_as_bytes(small)
    large = folder / "float32" / DECODER
    encoder, decoders = _session(folder / "float32" / ENCODER), {"float32": _session(large), "int8": _session(small)}
    for data in DATA[name]:
        images = _pictures(data, tokenizer.image_size)
        ids = np.concatenate([encoder.run(None, {"images": normalize(part).numpy()})[0] for part in images.split(8)])
        by = {weights: _decoded(decoder, ids) for weights, decoder in decoders.items()}
        values = {weights: psnr(restored, images) for weights, restored in by.items()}
        lost = values["float32"] - values["int8"]
        records.append({
            "tokenizer": name, "data": data, "images": len(images), "different_ids": check.different_ids,
            "bytes": {"float32": large.stat().st_size, "int8": small.stat().st_size},
            "psnr": {weights: float(value.mean()) for weights, value in values.items()},
            "lost": {**vars(mean_with_interval(lost, 0)), "most": float(lost.max())},
            "largest_difference": int((by["float32"].int() - by["int8"].int()).abs().max()),
            "milliseconds": _milliseconds(decoders | {"int8, at load": _session(small, AT_LOAD)}, ids),
        })  # fmt: skip
    return records


def run(path: Path | None) -> dict[str, Any]:
    """Export both bundled tokenizers, measure and write the result."""
    with tempfile.TemporaryDirectory() as folder:
        records = [record for name in DATA for record in _records(name, Path(folder) / name)]
    how = machine() | {"libraries": library_versions(("channelvq", "torch", "onnx", "onnxruntime")), "rounds": ROUNDS}
    result = {"protocol": how | {"git": git_revision()}, "records": records}
    if path is not None:
        write_json(path, result)
    return result


HEADINGS = (
    "tokenizer", "pictures", "decoder MB", "int8", "PSNR", "lost by int8 (95 %)", "most of a picture", "ms", "int8",
    "int8, at load",
)  # fmt: skip


def shown(result: dict[str, Any]) -> TextTable:
    """A row a kind of pictures."""
    rows = []
    for record in result["records"]:
        size, ms, lost = record["bytes"], record["milliseconds"], record["lost"]
        rows.append([
            record["tokenizer"], f"{record['images']} {record['data']}", f"{size['float32'] / 1e6:.1f}",
            f"{size['int8'] / 1e6:.1f}", f"{record['psnr']['float32']:.2f}",
            f"{lost['mean']:.4f} ({lost['low']:.4f} to {lost['high']:.4f})", f"{lost['most']:.3f}",
            *(f"{ms[name]:.1f}" for name in ("float32", "int8", "int8, at load")),
        ])  # fmt: skip
    note = "PSNR and what is lost in dB, of held-out pictures with all their tokens; ms of one core for one picture."
    return TextTable(HEADINGS, rows, note=note)


TABLES: Tables = {"onnx": ("onnx.json", shown)}
