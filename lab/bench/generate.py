"""`python -m lab bench generate`: our sampler beside transformers' `generate` with the same weights, interleaved.

Fresh weights: how long a token takes does not depend on what was learned. The floor of a token is the time in which
the processor reads every weight that a token needs once, at the bandwidth that a matrix-vector product over as many
numbers reaches.
"""

import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from channelvq.car.config import CARConfig
from channelvq.car.export import ExportLayout, stock_model
from channelvq.car.model import CAR
from channelvq.car.text import TextTokenizer, train_bpe
from channelvq.errors import InputError
from channelvq.evaluate.results import write_json
from channelvq.evaluate.tables import TextTable
from channelvq.quantize.axis import Axis
from channelvq.quantize.codebook import PlainConfig
from channelvq.tokenizer import CVQTokenizer
from channelvq.train.run import load_recipe
from channelvq.train.tokenizer_task import TokenizerRecipe
from lab.bench.timing import interleaved, machine, ratio
from lab.study import Tables

PROMPT = "a photo of a red car and a blue umbrella"
PEER = "transformers generate"
FLOOR = "reading the weights"
PREVIEW = 8  # channels


def fresh(codes: int, tokens: int, axis: Axis = "channel", config: CARConfig = CARConfig()) -> CAR:  # noqa: B008
    """The small backbone, or another, over a 64 px tokenizer, all fresh; along patches there are always 64 tokens."""
    small = load_recipe(f"small/axis-{axis}", (), of=TokenizerRecipe).model
    quantizer = PlainConfig(codebook_size=codes, start="uniform")
    channels = tokens if axis == "channel" else small.latent_channels
    tokenizer = CVQTokenizer(replace(small, latent_channels=channels, quantizer=quantizer)).eval()
    return CAR(config, tokenizer, TextTokenizer(train_bpe([PROMPT], 512))).eval()


def weight_bytes(model: CAR) -> int:
    """Bytes that one token needs to read: backbone without its text embedding, and head."""
    text = model.text_embedding.weight
    read = [p for p in model.backbone.parameters() if p is not text] + [model.head.weight]
    return sum(p.numel() * p.element_size() for p in read)


def stock_method(stock: PreTrainedModel, layout: ExportLayout, model: CAR, rows: int) -> Callable[[], object]:
    """Transformers' `generate` of an exported model, for so many images."""
    text = model.text.encode([PROMPT] * rows, model.config.max_text_tokens).to(model.device)
    used = int(text.mask.sum(1).max())
    marker = torch.full((rows, 1), layout.marker_id, device=model.device)
    ids = torch.cat([text.ids[:, -used:], marker], dim=1)
    mask = torch.ones_like(ids)
    return torch.no_grad()(partial(stock.generate, ids, attention_mask=mask))  # type: ignore[arg-type]


def _reading(model: CAR) -> Callable[[], object]:
    numbers = weight_bytes(model) // 4
    matrix, vector = torch.zeros(numbers // 256, 256), torch.zeros(256)
    return lambda: [torch.mv(matrix, vector) for _ in range(model.num_tokens)]


def measure(codes: int, tokens: int, rows: int, rounds: int) -> list[dict[str, Any]]:
    """Records of one setting: a batch of `rows` images of `tokens` tokens, no guidance, each method every round."""
    model = fresh(codes, tokens)
    prompts = [PROMPT] * rows
    ours = partial(model.generate, prompts, guidance_scale=1.0)
    methods: dict[str, Callable[[], object]] = {
        PEER: stock_method(*stock_model(model), model, rows),
        "channelvq": ours,
        "channelvq, exact=False": partial(ours, exact=False),
        "channelvq, compiled": partial(ours, exact=False, compiled=True),
        FLOOR: _reading(model),
    }
    previews = {"first preview": partial(_first, model, prompts), "all with pictures": lambda: ours().images}
    for work in methods.values():  # what the first call takes once
        work()
    times = interleaved(methods | previews, rounds)
    facts = {"codes": codes, "tokens": tokens, "rows": rows}
    records = [
        facts | {
            "method": name,
            "tokens_per_second": rows * tokens / statistics.median(times[name]),
            "speedup": 1 / ratio(times[name], times[PEER]),
            "floor_share": ratio(times[FLOOR], times[name]),
        }
        for name in methods
    ]  # fmt: skip
    preview = ratio(times["first preview"], times["all with pictures"])
    records[1] |= {"preview_seconds": statistics.median(times["first preview"]), "preview_share": preview}
    return records


def _first(model: CAR, prompts: list[str]) -> object:
    return next(iter(model.stream(prompts, PREVIEW, guidance_scale=1.0))).images


def check(settings: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """The settings; raises InputError for numbers that cannot be measured."""
    for codes, tokens, images in settings:
        if codes < 2 or tokens < PREVIEW or images < 1:
            raise InputError(
                f"bench generate: {codes} codes, {tokens} tokens, {images} images: need at least 2, {PREVIEW} and 1"
            )
    return settings


def run(
    settings: list[tuple[int, int, int]], rounds: int, path: Path | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure (codes, tokens, rows), each told by `say` as it begins, and write the result after every one."""
    parameters = sum(p.numel() for p in fresh(*settings[0][:2]).backbone.parameters())
    protocol = machine() | {
        "rounds": rounds,
        "backbone": f"small Qwen3, {parameters / 1e6:.1f} M parameters, float32, fresh weights, no guidance",
        "speedup": f"median over rounds of the time of {PEER} over the method's in the same round",
        "floor_share": "time to read the weights once a token, at the bandwidth of a matrix-vector product, over the "
        "method's",
        "preview_share": f"time to the picture of {PREVIEW} channels over that to the whole picture, exact=True",
    }
    records: list[dict[str, Any]] = []
    result = {"protocol": protocol, "records": records}
    for codes, tokens, rows in settings:
        say(f"measuring {codes:,} codes, {tokens} tokens, {rows} image(s)")
        records += measure(codes, tokens, rows, rounds)
        if path is not None:
            write_json(path, result)
    return result


HEADINGS = ("codes", "tokens", "images", "method", "tokens/s", "over transformers", "of the floor", "first preview")


def shown(result: dict[str, Any]) -> TextTable:
    """Every method of every setting."""
    how = result["protocol"]
    rows = [
        [f"{r['codes']:,}", str(r["tokens"]), str(r["rows"]), r["method"], f"{r['tokens_per_second']:.0f}",
         f"{r['speedup']:.2f}", f"{r['floor_share']:.0%}",
         f"{r['preview_seconds']:.2f} s, {r['preview_share']:.0%}" if "preview_share" in r else ""]
        for r in result["records"]
    ]  # fmt: skip
    return TextTable(HEADINGS, rows, note=f"{how['machine']}; {how['backbone']}.")


TABLES: Tables = {"generate": ("generate-bench.json", shown)}
