"""The generator that ships in the package: from a finished run to weights, model card and results."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from channelvq.car.model import CAR
from channelvq.evaluate.geneval import report as geneval_report
from channelvq.evaluate.geneval.score import in_order
from channelvq.evaluate.metrics import with_interval
from channelvq.evaluate.next_channel import evaluate_next_channel
from channelvq.evaluate.reconstruction import evaluate_reconstruction
from channelvq.evaluate.results import make_record
from channelvq.evaluate.tables import TextTable
from channelvq.files import replaced_folder
from channelvq.report.token_sets import parameters, token_sets
from channelvq.tokenizer import CVQTokenizer
from channelvq.train.car_task import CARRecipe
from lab.bundle.tokenizer import credits_of, finished_run, shrink, trained_by, works_of, write_with_card
from lab.studies.generator import scene_protocol
from lab.study import Tables

RECIPE = "small/bundled-car"

# What follows from the image tokenizer: kept as it is there, so that the two are known to belong together.
_OF_THE_TOKENIZER = ("codebook", "codeword_mean", "codeword_scale")


def bundle(run_dir: Path, package: Path, results: Path, command: str) -> dict[str, Any]:
    """Weights of a byte a number and model card into `package`/car, figures into `results`.

    Everything is measured on the weights as they are stored, not as they were trained. The package keeps what it had
    until all of it is there. Raises InputError for a run that is not finished, or trained on what may not be bundled.
    """
    recipe, facts = finished_run(run_dir, CARRecipe, command)
    works_of(recipe.data)
    with replaced_folder(package / "car") as folder:
        store_generator(run_dir / "final", folder, shrink)
        result = measure(CAR.from_pretrained(folder), recipe, facts)
        card = partial(model_card, recipe=recipe)
        return write_with_card(results / "bundled-generator.json", result, folder, card)


def measure(car: CAR, recipe: CARRecipe, facts: dict[str, Any]) -> dict[str, Any]:
    """{"run", "protocol", "records"} of a generator on held-out scenes; facts: of `finished_run`."""
    sets = token_sets(recipe, car.tokenizer)
    metrics = evaluate_next_channel(car, sets.test, sets.train_ids).to_dict()
    training = trained_by(recipe, facts)
    how = scene_protocol(sets.images, car.tokenizer) | {"git": training["git"]}
    entry = make_record(car.tokenizer.config, data="scenes", split="held-out", metrics=metrics, **training)
    entry |= {"parameters": parameters(car),
              "reconstruction": evaluate_reconstruction(car.tokenizer, sets.images).to_dict()}  # fmt: skip
    return {"run": facts, "protocol": how, "records": [entry]}


def store_generator(source: Path, folder: Path, store: Callable[..., None]) -> None:
    """Store the image tokenizer, then everything that the generator has beside it; store: `halve` or `shrink`."""
    trained, place = CAR.from_pretrained(source), folder / "tokenizer"
    trained.tokenizer.save_pretrained(place)
    store(place / "model.safetensors")
    rebuilt = CAR(trained.config, CVQTokenizer.from_pretrained(place), trained.text)
    skipped = ("tokenizer.", *_OF_THE_TOKENIZER)
    state = {name: t for name, t in trained.state_dict().items() if not name.startswith(skipped)}
    rebuilt.load_state_dict(state, strict=False)
    rebuilt.save_pretrained(folder)
    store(folder / "model.safetensors", keep=_OF_THE_TOKENIZER)
    store(place / "model.safetensors")  # what was stored before is stored as it was


def model_card(result: dict[str, Any], recipe: CARRecipe) -> str:
    """README.md of the bundled generator, every figure from the result file."""
    run, record = result["run"], result["records"][0]
    m, reconstruction = record["metrics"], record["reconstruction"]
    return CARD.format(
        command=run["command"], steps=run["steps"], batch=recipe.train.batch_size,
        minutes=run["training_seconds"] / 60, machine=run["machine"], torch=run["torch"], git=run["git"],
        millions=sum(record["parameters"].values()) / 1e6, images=recipe.objective.train_images,
        n=m["num_images"], nats=m["nats"], low=m["nats_interval"][0], high=m["nats_interval"][1],
        shuffled=m["nats_shuffled"], unigram=m["nats_unigram"], top1=m["top1"], psnr=reconstruction["psnr"],
        works=credits_of(works_of(recipe.data)),
    )  # fmt: skip


def prediction(result: dict[str, Any]) -> TextTable:
    """On held-out scenes."""
    record, m = result["records"][0], result["records"][0]["metrics"]
    cells = [
        f"{sum(record['parameters'].values()) / 1e6:.1f} M", str(result["run"]["steps"]),
        with_interval(m, "nats"),
        f"{m['nats_shuffled']:.3f}", f"{m['nats_unigram']:.3f}", f"{m['top1']:.1%}",
        f"{record['reconstruction']['psnr']:.2f}", f"{result['run']['training_seconds'] / 60:.0f}",
    ]  # fmt: skip
    headings = ("parameters", "steps", "nats (95 %)", "other caption", "counts alone", "top-1",
                "its tokenizer, PSNR", "minutes of training")  # fmt: skip
    return TextTable(headings, [cells])


def geneval_faults(result: dict[str, Any]) -> TextTable:
    """Where it fails: the share of each task's images by the first thing that is wrong."""
    kinds = ("missing", "count", "colour", "position")
    faults = result["faults"]["generator"]
    rows = [
        [task.replace("_", " "), *(f"{faults[task].get(kind, 0):.1%}" for kind in kinds)] for task in in_order(faults)
    ]
    return TextTable(("task", "a thing is missing", "too many", "wrong colour", "wrong place"), rows)


TABLES: Tables = {
    "bundled-generator": ("bundled-generator.json", prediction), "geneval": ("geneval.json", geneval_report.scores),
    "geneval-faults": ("geneval.json", geneval_faults),
}  # fmt: skip


CARD = """---
library_name: channelvq
license: apache-2.0
pipeline_tag: text-to-image
tags: [text-to-image, vector-quantization]
---
# The bundled CAR generator

Text -> 64 channel tokens of 4,096 codes -> 64 x 64 px, one channel at a time; {millions:.1f} M parameters, stored
a byte a number, with its own image tokenizer (tokenizer/) and a byte-level BPE for the text.

```python
from channelvq import CAR

car = CAR.from_pretrained("bundled")
car.generate("a photo of two bananas", seed=0).images[0].save("bananas.png")
```

It knows scenes of one to four things of 63 classes in ten colours, in GenEval's grammar ("a photo of three dogs",
"a photo of a red car and a blue umbrella", "a photo of a cat left of a chair") and in free sentences of that meaning.

## Training

`{command}`: {steps} steps of {batch} images out of {images}, {minutes:.0f} minutes on {machine}, torch {torch},
revision `{git}`.

## Held-out results

{n} scenes whose combinations (class and colour, class and count, two classes, relation) were never trained on. Every
figure is in `results/bundled-generator.json`.

| | nats a token |
|---|---|
| right caption | {nats:.3f} ({low:.3f} to {high:.3f}) |
| another caption | {shuffled:.3f} |
| each channel's counts alone | {unigram:.3f} |

Top-1 accuracy {top1:.1%}. The tokenizer restores these scenes with {psnr:.2f} dB.

## Limits

A small model for learning, tests and demonstrations: it draws blurred sprites on plain backgrounds, nothing else.

## Sources of the training images, with licences

- Scenes drawn by channelvq (Apache-2.0), with the sprites and labels of:
{works}
"""
