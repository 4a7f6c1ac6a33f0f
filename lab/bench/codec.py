"""`python -m lab bench codec`: bytes against quality of .cvq files beside JPEG, WebP, AVIF, JPEG XL and PCA.

Held-out emoji, photographs and scenes at the tokenizer's size; static tables, and CAR on scenes with the caption in the
file, known to the reader, and not known to anybody. Bytes with headers and without.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from channelvq.car.model import CAR
from channelvq.codec import CodeTables, compress_ids, decompress, decompress_ids, read_header
from channelvq.codec.car_scores import CARScores
from channelvq.evaluate.baselines import PCABaseline
from channelvq.evaluate.features import pair_distances
from channelvq.evaluate.held_out import DESCRIPTIONS, KINDS, held_out
from channelvq.evaluate.metrics import METRICS, PairMetric, psnr, ssim
from channelvq.evaluate.results import write_json
from channelvq.evaluate.tables import TextTable
from channelvq.images import grid, normalize, save_image, strip, to_pil, to_tensor
from channelvq.packed_size import num_bytes
from channelvq.pretrained import CODE_TABLES, WEIGHTS
from channelvq.refine import refine_ids
from channelvq.report.token_sets import scenes as scenes_of
from channelvq.tokenizer import CVQTokenizer
from channelvq.train.car_task import CARRecipe
from channelvq.train.run import load_recipe
from lab.bench import other_codecs
from lab.bench.timing import machine
from lab.bundle.generator import RECIPE
from lab.plots import line_panels
from lab.study import Tables

LENGTHS = (8, 16, 32, 48, 64)
CUTS = (32, 48, 64, 80, 96)  # bytes of one file, header included; before these the header alone, after them all of it
EFFORTS = (30,)
NAMES = {"jpeg": "JPEG", "webp": "WebP", "avif": "AVIF", "jxl": "JPEG XL"}
CAPTIONS = {"none": "not known", "needed": "known to the reader"}
GENERATORS = "bundled generator's"
Networks = dict[str, nn.Module]


def run(images: int, scenes: int, path: Path | None, pictures: Path | None) -> dict[str, Any]:
    """Measure, write the result, and the plot and the strip into the folder `pictures`."""
    tokenizer, car = CVQTokenizer.from_pretrained("bundled"), CAR.from_pretrained("bundled")
    networks = _networks()
    records = list[dict[str, Any]]()
    for kind in KINDS:
        shown = held_out(kind, images, tokenizer.image_size)
        records += _static(tokenizer, "bundled", kind, shown, networks, EFFORTS)
        records += _others(kind, shown, records, networks)
    records += _car(car, scenes, networks)
    protocol = machine() | {
        "data": {kind: DESCRIPTIONS[kind] for kind in KINDS}, "images": images, "images_of_car": scenes,
        "data_of_car": f"test split of the scenes of {RECIPE}",
        "bytes": "means over images; of the other codecs those of the best of scales 1, 2, 4, 8 and 13 qualities for "
        "each image within the budget, or of its smallest file", "ms_ssim": "not at 64 px: it needs more than 160",
        "decoder": {"tokenizer_bytes": _size(tokenizer), "generator_bytes": _size(car.tokenizer, "../" + WEIGHTS)},
    }  # fmt: skip
    result = {"protocol": protocol, "records": records}
    if path is not None:
        write_json(path, result)
    if pictures is not None:
        draw_curves(records, pictures / "codec.png")
        draw_strip(tokenizer, pictures / "codec-strip.png")
    return result


def _size(tokenizer: CVQTokenizer, *more: str) -> int:
    assert tokenizer.folder is not None
    names = (WEIGHTS, CODE_TABLES, *more)
    return sum((tokenizer.folder / name).stat().st_size for name in names if (tokenizer.folder / name).is_file())


def _quality(restored: Tensor, images: Tensor, networks: Networks) -> dict[str, float]:
    figures = {"psnr": psnr(restored, images), "ssim": ssim(restored, images)}
    figures |= {name: pair_distances(network, restored, images) for name, network in networks.items()}
    return {name: float(values.mean()) for name, values in figures.items()}


def _networks() -> dict[str, nn.Module]:
    """The perceptual distances whose weights are here."""
    listed = {name: METRICS[name] for name in ("perceptual", "lpips_alex")}
    built = {name: m.network("bundled") for name, m in listed.items() if isinstance(m, PairMetric) and m.network}
    return {name: network for name, network in built.items() if network is not None}


def _coded(
    tokenizer: CVQTokenizer,
    images: UInt8[Tensor, "n 3 h w"],
    ids: Tensor,
    networks: Networks,
    **options: Any,
) -> dict[str, Any]:
    """One length of tokens, there and back."""
    began = time.perf_counter()
    files = compress_ids(ids, tokenizer, **options)
    written = time.perf_counter()
    reading = {name: value for name, value in options.items() if name in ("car", "captions")}
    restored = torch.stack([to_tensor(image) for image in decompress(files, tokenizer, **reading)])
    read = time.perf_counter()
    headers = [read_header(file)[1] for file in files]
    n, size = len(files), sum(map(len, files))
    return {
        "tokens": ids.shape[1], "bytes": size / n, "bytes_without_header": (size - sum(headers)) / n,
        "bytes_uncoded": num_bytes(ids.shape[1], tokenizer.codebook_size),
        "bits_per_pixel": 8 * size / n / images[0, 0].numel(), **_quality(restored, images, networks),
        "encode_seconds": (written - began) / n, "decode_seconds": (read - written) / n,
    }  # fmt: skip


def _static(
    tokenizer: CVQTokenizer, name: str, kind: str, images: Tensor, networks: Networks, efforts: Sequence[int] = ()
) -> list[dict[str, Any]]:
    """Each length of tokens; then all of them, found with so many steps of search."""
    ids, tables = tokenizer.tokenize(normalize(images)), CodeTables.of(tokenizer)
    records = []
    for k in (k for k in LENGTHS if k <= tokenizer.num_tokens):
        entropy = float(tables.bits(ids)[:, :k].sum(1).mean()) / 8
        figures = _coded(tokenizer, images, ids[:, :k], networks)
        records.append({"data": kind, "model": "static", "tokenizer": name, **figures, "entropy_bytes": entropy})
    one = compress_ids(ids, tokenizer, chunk_tokens=tokenizer.num_tokens)
    coded = sum(read_header(file)[0].ends[-1] - 1 for file in one) / len(one)  # without the one checksum
    records[-1]["coded_bytes"] = coded
    for effort in efforts:
        began = time.perf_counter()
        found = refine_ids(tokenizer, normalize(images), steps=effort)
        seconds = (time.perf_counter() - began) / len(images)
        figures = _coded(tokenizer, images, found, networks)
        figures |= {"effort": effort, "encode_seconds": figures["encode_seconds"] + seconds}
        records.append({"data": kind, "model": "static", "tokenizer": name, **figures})
    return records


def _plain(record: dict[str, Any], kind: str) -> bool:
    """Whether a record is of the ids that `tokenize` gives, by static tables."""
    return record["data"] == kind and record["model"] == "static" and "effort" not in record


def _others(kind: str, images: Tensor, records: list[dict[str, Any]], networks: Networks) -> list[dict[str, Any]]:
    """The other codecs at the bytes of the .cvq files of the same images."""
    budgets = [(r["bytes"], r["bytes_without_header"]) for r in records if _plain(r, kind)]
    out, pca = list[dict[str, Any]](), PCABaseline.load("bundled")
    for _, bare in budgets:
        figures = _quality(pca.reconstruct(images, round(bare)), images, networks)
        out.append({"data": kind, "model": "pca", "counted": "without header", "budget": bare, "bytes": None,
                    "bytes_without_header": round(bare), "fits": 1.0, **figures})  # fmt: skip
    for name in filter(other_codecs.have, other_codecs.FORMATS):
        files = [other_codecs.candidates(image, name) for image in images]
        for counted, headers in (("with header", True), ("without header", False)):
            for budget in [pair[0] if headers else pair[1] for pair in budgets] + [200, 400, 800]:
                restored, chosen, fits = other_codecs.best(files, budget, headers)
                sizes = {"bytes": sum(f.size for f in chosen) / len(chosen),
                         "bytes_without_header": sum(f.payload for f in chosen) / len(chosen)}  # fmt: skip
                out.append({"data": kind, "model": name, "counted": counted, "budget": budget, **sizes, "fits": fits,
                            **_quality(restored, images, networks)})  # fmt: skip
    return out


def _car(car: CAR, count: int, networks: Networks) -> list[dict[str, Any]]:
    """Scenes in the generator's own tokenizer: its tables, then its scores."""
    tokenizer, scores = car.tokenizer, CARScores(car)
    scenes = scenes_of(load_recipe(RECIPE, of=CARRecipe), tokenizer, "test")
    samples = [scenes[i] for i in range(count)]
    images, captions = torch.stack([s.image for s in samples]), [s.text for s in samples]
    ids = tokenizer.tokenize(normalize(images))
    records = _static(tokenizer, GENERATORS, "scenes", images, networks)
    for how, said in CAPTIONS.items():
        options = {} if how == "none" else {"captions": captions, "store_captions": False}
        figures = _coded(tokenizer, images, ids, networks, car=scores, **options)
        records.append({"data": "scenes", "model": "car", "tokenizer": GENERATORS, "caption": said, **figures})
    return records


def draw_curves(records: list[dict[str, Any]], path: Path) -> None:
    """PSNR against bytes with headers, and of .cvq also without."""
    panels = []
    for kind in KINDS:
        lines: dict[str, list[tuple[float, float]]] = {}
        for r in (r for r in records if r["data"] == kind and r.get("tokenizer") != GENERATORS):
            if r["model"] == "static":
                found = f", effort {r['effort']}" if "effort" in r else ""
                lines.setdefault(f".cvq{found}", []).append((r["bytes"], r["psnr"]))
                lines.setdefault(f".cvq without header{found}", []).append((r["bytes_without_header"], r["psnr"]))
            elif r["model"] == "pca":
                lines.setdefault("PCA, no header", []).append((r["bytes_without_header"], r["psnr"]))
            elif r["counted"] == "with header":
                lines.setdefault(NAMES[r["model"]], []).append((r["bytes"], r["psnr"]))
        panels.append((f"{kind}: bytes of a file", "PSNR (dB)", {name: sorted(set(p)) for name, p in lines.items()}))
    line_panels(panels, path)


def draw_strip(tokenizer: CVQTokenizer, path: Path) -> None:
    """One emoji, one photograph and one scene: the file cut at so many bytes."""
    rows = []
    for kind in KINDS:
        image = held_out(kind, 2, tokenizer.image_size)[1:]
        file = compress_ids(tokenizer.tokenize(normalize(image)), tokenizer)[0]
        start = read_header(file)[1]
        cuts = [end for end in (start, *CUTS) if start <= end < len(file)] + [len(file)]
        lengths = [len(d.ids) for d in decompress_ids([file[:end] for end in cuts], tokenizer)]
        captions = ["original", *(f"{end} B, {k} tok." for end, k in zip(cuts, lengths, strict=True))]
        pictures = decompress([file[:end] for end in cuts], tokenizer)
        rows.append(strip([*to_pil(image), *pictures], captions=captions, scale=2))
    save_image(grid(rows, 1), path)


def shown(result: dict[str, Any]) -> TextTable:
    """Every .cvq file."""
    rows = []
    for r in result["records"]:
        if r["model"] in ("static", "car"):
            how = ", ".join([r["model"], *(f"{name} {r[name]}" for name in ("caption", "effort") if name in r)])
            figures = [f"{r[name]:.1f}" for name in ("bytes", "bytes_without_header")]
            saved = f"{1 - r['bytes_without_header'] / r['bytes_uncoded']:.0%}"
            times = [f"{1000 * r[name]:.0f}" for name in ("encode_seconds", "decode_seconds")]
            rows.append([r["data"], r["tokenizer"], how, str(r["tokens"]), *figures, str(r["bytes_uncoded"]), saved,
                         f"{r['bits_per_pixel']:.3f}", f"{r['psnr']:.2f}", f"{r['ssim']:.3f}",
                         f"{r.get('perceptual', float('nan')):.3f}", *times])  # fmt: skip
    sizes = result["protocol"]["decoder"]
    note = (
        f"Means over {result['protocol']['images']} images ({result['protocol']['images_of_car']} with the generator's "
        f"tokenizer), bytes with header unless said. A decoder needs {sizes['tokenizer_bytes'] / 1e6:.1f} MB of "
        f"weights and tables, with the generator {sizes['generator_bytes'] / 1e6:.1f} MB. "
        f"{result['protocol']['machine']}."
    )
    headings = ("images", "tokenizer", "code model", "tokens", "bytes", "without header", "tokens alone", "saved",
                "bits/pixel", "PSNR", "SSIM", "perceptual", "encode ms", "decode ms")  # fmt: skip
    return TextTable(headings, rows, note=note)


def beside(result: dict[str, Any]) -> TextTable:
    """All codecs at the bytes of a full .cvq file with static tables."""
    names, rows = ("pca", *other_codecs.FORMATS), []
    for own in result["records"]:
        if not _plain(own, own["data"]) or own["tokenizer"] != "bundled" or own["tokens"] not in (16, 64):
            continue
        for counted, size in (("with header", own["bytes"]), ("without header", own["bytes_without_header"])):
            cells = []
            for name in names:
                found = next((r for r in result["records"] if r["data"] == own["data"] and r["model"] == name
                              and r["counted"] == counted and r["budget"] == size), None)  # fmt: skip
                fits = found is not None and found["fits"] == 1
                key = "bytes" if counted == "with header" else "bytes_without_header"
                taken = "" if fits or found is None else f" at {found[key]:.0f} B"
                cells.append("-" if found is None else f"{found['psnr']:.2f}{taken}")
            rows.append([own["data"], f"{size:.0f}, {counted}", f"{own['psnr']:.2f}", *cells])
    headings = ("images", "bytes", ".cvq", "PCA", "JPEG", "WebP", "AVIF", "JPEG XL")
    note = "PSNR in dB. Where not every image fits the bytes, the mean size of what was taken is said."
    return TextTable(headings, rows, note=note)


TABLES: Tables = {"codec": ("codec.json", shown), "codec-beside": ("codec.json", beside)}
