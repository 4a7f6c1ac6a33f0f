"""`python -m lab bench llama-cpp`: ids that llama.cpp writes from a GGUF export, beside those of transformers.

llama.cpp runs in this process, by `pip install xllamacpp`, a build of it with its own server. Both take the likeliest
token. A choice that differs changes all that follows, so choices are also counted after llama.cpp's own tokens: how
many of them transformers would have made otherwise. And how fast each is beside our sampler, one thread each, one image
at a time, without guidance.
"""

import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from channelvq.car.export import export_car, stock_model
from channelvq.car.exported import Exported, ImageIds
from channelvq.car.gguf_export import GGUF_FILE, export_gguf
from channelvq.car.model import CAR
from channelvq.devices import ExportedWeights
from channelvq.errors import InputError
from channelvq.evaluate.results import write_json
from channelvq.evaluate.tables import TextTable
from lab.bench.generate import PEER, stock_method
from lab.bench.timing import interleaved, machine, ratio
from lab.study import Tables

# weights, cache
CASES: tuple[tuple[ExportedWeights, str], ...] = (("float32", "F32"), ("float32", "F16"), ("int8", "F16"))
NEVER = -1e9
ROUNDS = 9
COLOURS, THINGS = ("red", "blue", "green", "purple"), ("dog", "car", "umbrella", "cat", "chair", "bus", "bird", "book")
PROMPTS = [f"a photo of a {colour} {thing}" for thing in THINGS for colour in COLOURS]


class LlamaCpp:
    """llama.cpp on an export. cache: the type of its keys and values, F16 where nothing is said."""

    def __init__(self, folder: Path, cache: str) -> None:
        try:
            import xllamacpp  # pyright: ignore[reportMissingImports]  # not among the packages of the tests
        except ImportError:
            raise InputError("this needs llama.cpp: pip install xllamacpp") from None
        self.exported = Exported(folder)
        settings = xllamacpp.CommonParams()
        settings.model.path = str(folder / GGUF_FILE)
        settings.n_parallel, settings.n_ctx = 1, self.exported.max_text_tokens + 1 + self.exported.num_tokens
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1  # they spin; a busy core stops them all
        settings.cache_type_k = settings.cache_type_v = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{cache}")
        self._server = xllamacpp.Server(settings)
        self._bias = {str(token): NEVER for token in range(self.exported.layout.first_image_id)}
        self.version = xllamacpp.__version__

    def ids(self, tokens: list[int]) -> list[int]:
        """The likeliest image after a prompt and the marker."""
        asked = {
            "prompt": tokens, "max_tokens": self.exported.num_tokens, "temperature": 0, "logit_bias": self._bias
        }  # fmt: skip
        answer = ImageIds(self.exported.layout, self.exported.num_tokens)
        answer.add(self._server.handle_completions(asked)["choices"][0]["text"])
        return answer.end()


@torch.no_grad()
def choices(model: PreTrainedModel, tokens: list[int], ids: list[int], first: int) -> list[int]:
    """What transformers finds likeliest after each beginning of `ids`."""
    inputs = torch.tensor([tokens + [first + code for code in ids[:-1]]])
    return model(inputs).logits[0, len(tokens) - 1 :, first:].argmax(-1).tolist()


def run(car: str, path: Path | None) -> dict[str, Any]:
    """Export in every precision and compare image by image."""
    torch.set_num_threads(1)  # as llama.cpp has here
    model, records, version = CAR.from_pretrained(car), [], ""
    methods = own_methods(model)
    with tempfile.TemporaryDirectory() as folder:
        export_car(model, Path(folder, "stock"))
        stock = AutoModelForCausalLM.from_pretrained(Path(folder, "stock"), trust_remote_code=False)
        for weights, cache in CASES:
            place = Path(folder, f"{weights}-{cache}")
            export_gguf(model, place, weights)
            llama = LlamaCpp(place, cache)
            version = llama.version
            size = (place / GGUF_FILE).stat().st_size
            records.append({"weights": weights, "cache": cache, "bytes": size} | _compared(llama, stock))
            if cache == "F16":  # as llama.cpp has it where nothing is said
                tokens, _ = llama.exported.prompt(llama.exported.text.encode(PROMPTS[0], model.max_text_tokens))
                methods[f"llama.cpp, {weights}"] = partial(llama.ids, tokens)
        speeds = measured_speeds(methods, model.num_tokens)
    about = {"model": car, "prompts": PROMPTS, "tokens": model.num_tokens, "xllamacpp": version}
    about |= {"rounds": ROUNDS, "speedup": f"median over rounds of the time of {PEER} over the method's"}
    result = {"protocol": machine() | about, "records": records, "speeds": speeds}
    if path is not None:
        write_json(path, result)
    return result


def own_methods(model: CAR) -> dict[str, Callable[[], object]]:
    """What draws one image of the first prompt, by name: transformers and our sampler."""
    ours = partial(model.generate, PROMPTS[0], guidance_scale=1.0, temperature=0.0)
    return {
        PEER: stock_method(*stock_model(model), model, rows=1),
        "channelvq": ours,
        "channelvq, exact=False": partial(ours, exact=False),
        "channelvq, compiled": partial(ours, exact=False, compiled=True),
    }


def measured_speeds(methods: dict[str, Callable[[], object]], tokens: int) -> list[dict[str, Any]]:
    """A record for each method, of images of so many tokens."""
    for work in methods.values():  # what the first call takes once
        work()
    times = interleaved(methods, ROUNDS)
    return [
        {"method": name, "tokens_per_second": tokens / statistics.median(times[name]),
         "speedup": 1 / ratio(times[name], times[PEER])}
        for name in methods
    ]  # fmt: skip


def _compared(llama: LlamaCpp, stock: PreTrainedModel) -> dict[str, int]:
    exported, first = llama.exported, llama.exported.layout.first_image_id
    equal, differ, chosen = 0, 0, 0
    for prompt in PROMPTS:
        tokens, _ = exported.prompt(exported.text.encode(prompt, exported.max_text_tokens))
        theirs, inputs = llama.ids(tokens), torch.tensor([tokens])
        written = cast(Any, stock).generate(inputs, attention_mask=torch.ones_like(inputs), do_sample=False)
        ours = exported.layout.image_ids(written[0, len(tokens) :].tolist())
        wrong = sum(a != b for a, b in zip(ours, theirs, strict=True))
        equal, differ = equal + (wrong == 0), differ + wrong
        chosen += sum(a != b for a, b in zip(choices(stock, tokens, theirs, first), theirs, strict=True))
    return {"images": len(PROMPTS), "equal_images": equal, "different_ids": differ, "different_choices": chosen}


HEADINGS = ("weights", "keys and values", "MB", "images", "equal", "ids that differ", "choices that differ")


def shown(result: dict[str, Any]) -> TextTable:
    """A row for each precision."""
    tokens = result["protocol"]["tokens"]
    rows = [
        [r["weights"], r["cache"], f"{r['bytes'] / 1e6:.1f}", str(r["images"]), str(r["equal_images"]),
         *(f"{r[name]} of {r['images'] * tokens:,}" for name in ("different_ids", "different_choices"))]
        for r in result["records"]
    ]  # fmt: skip
    protocol = result["protocol"]
    note = f"{protocol['machine']}; the generator {protocol['model']}, llama.cpp of xllamacpp {protocol['xllamacpp']}."
    return TextTable(HEADINGS, rows, note=note)


def shown_speeds(result: dict[str, Any]) -> TextTable:
    """A row for each method."""
    rows = [[r["method"], f"{r['tokens_per_second']:.0f}", f"{r['speedup']:.2f}"] for r in result["speeds"]]
    return TextTable(("method", "tokens/s of one core", "over transformers"), rows, note=result["protocol"]["machine"])


TABLES: Tables = {"llama-cpp": ("llama-cpp.json", shown), "llama-cpp-speed": ("llama-cpp.json", shown_speeds)}
