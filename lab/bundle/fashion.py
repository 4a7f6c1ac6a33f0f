"""The generator of clothes that ships in the package, with its tokenizer: from a finished run to weights and card."""

from functools import partial
from pathlib import Path
from typing import Any

from channelvq.car.model import CAR
from channelvq.evaluate.measures import choose_measures
from channelvq.evaluate.reconstruction import evaluate_reconstruction
from channelvq.evaluate.results import make_record
from channelvq.evaluate.tables import TextTable
from channelvq.files import replaced_folder
from channelvq.pictures import restored
from channelvq.report.token_sets import parameters
from channelvq.train.car_task import CARRecipe
from lab.bundle.generator import store_generator
from lab.bundle.tokenizer import credits_of, finished_run, shrink, trained_by, works_of, write_with_card
from lab.clothes import Judge, pictures
from lab.store import DEFAULT_STORE
from lab.studies.fashion import IMAGES, judged_protocol, judged_samples
from lab.study import Tables

RECIPE = "small/fashion-car"
LARGE = 2**13  # numbers of a matrix that is stored as bytes: those of a small model are small


def bundle(run_dir: Path, package: Path, results: Path, command: str, store: Path = DEFAULT_STORE) -> dict[str, Any]:
    """Weights of a byte a number and model card into `package`/fashion, figures into `results`.

    store: where the classifier that judges is, or is put. Everything is measured on the weights as they are stored. The
    package keeps what it had until all of it is there. Raises InputError for a run that is not finished.
    """
    recipe, facts = finished_run(run_dir, CARRecipe, command)
    with replaced_folder(package / "fashion") as folder:
        store_generator(run_dir / "final", folder, partial(shrink, large=LARGE))
        result = measure(CAR.from_pretrained(folder), recipe, facts, store)
        card = partial(model_card, recipe=recipe)
        return write_with_card(results / "bundled-fashion.json", result, folder, card)


def measure(car: CAR, recipe: CARRecipe, facts: dict[str, Any], store: Path) -> dict[str, Any]:
    """{"run", "protocol", "records"}: what the tokenizer restores and what the generator draws, judged."""
    judges = {"test": Judge(store), "validation": Judge(store, "validation")}
    images, labels = pictures("test", IMAGES)
    measures = choose_measures(images.shape[-1], "none")
    metrics = evaluate_reconstruction(car.tokenizer, images, measures=measures).to_dict()
    entry = make_record(
        car.tokenizer.config, data="fashion-mnist", split="test", metrics=metrics, **trained_by(recipe, facts)
    )
    entry |= {
        "parameters": parameters(car),
        "judged": judges["test"](restored(car.tokenizer, images, car.num_tokens), labels),
    }
    how = judged_protocol(judges["test"], images, labels)
    return {"run": facts, "protocol": how, "records": [entry | judged_samples(car, judges)[0]]}


def model_card(result: dict[str, Any], recipe: CARRecipe) -> str:
    """README.md of the pair, every figure from the result file."""
    run, record = result["run"], result["records"][0]
    drawn, back = record["by_scale"][str(record["scale"])], record["judged"]
    return CARD.format(
        command=run["command"], steps=run["steps"], batch=recipe.train.batch_size,
        minutes=run["training_seconds"] / 60, machine=run["machine"], torch=run["torch"], git=run["git"],
        millions=sum(record["parameters"].values()) / 1e6, n=result["protocol"]["n"], scale=record["scale"],
        psnr=record["metrics"]["psnr"], real=result["protocol"]["judge"]["real"]["accuracy"],
        accuracy=drawn["accuracy"], frechet=drawn["frechet"], back=back["accuracy"], back_frechet=back["frechet"],
        works=credits_of(works_of(recipe.data)),
    )  # fmt: skip


def judged(result: dict[str, Any]) -> TextTable:
    """Real, restored and drawn pictures, by the classifier."""
    record, real = result["records"][0], result["protocol"]["judge"]["real"]
    sets = {"real": (real, ""), "restored from 16 tokens": (record["judged"], ""),
            **{f"drawn, guidance {scale}": (set_, "chosen" if float(scale) == record["scale"] else "")
               for scale, set_ in record["by_scale"].items()}}  # fmt: skip
    rows = [
        [name, f"{s['accuracy']:.3f}", f"{s['frechet']:.1f}", f"{s['precision']:.2f}", f"{s['recall']:.2f}", note]
        for name, (s, note) in sets.items()
    ]
    judge, n = result["protocol"]["judge"], result["protocol"]["n"]
    note = f"{n:,} pictures each; the classifier is right on {judge['accuracy']:.1%} of all 10,000 real test pictures."
    return TextTable(("pictures", "accuracy", "Frechet distance", "precision", "recall", ""), rows, note=note)


TABLES: Tables = {"bundled-fashion": ("bundled-fashion.json", judged)}


CARD = """---
library_name: channelvq
license: apache-2.0
pipeline_tag: text-to-image
tags: [text-to-image, vector-quantization]
---
# The bundled generator of clothes

The name of a class of Fashion-MNIST -> 16 channel tokens of 1,024 codes -> 32 x 32 px, one channel at a time;
{millions:.1f} M parameters, stored a byte a number, with its own image tokenizer (tokenizer/).

```python
from channelvq import CAR

car = CAR.from_pretrained("bundled-fashion")
car.generate("ankle boot", seed=0, guidance_scale={scale:g}).images[0].save("boot.png")
```

It knows ten prompts: t-shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle boot.

## Training

`cvq train small/fashion-tokenizer`, then `{command}`: {steps} steps of {batch} pictures, {minutes:.0f} minutes on
{machine}, torch {torch}, revision `{git}`.

## Results

{n:,} pictures of the official test split and as many samples, judged by a classifier that was trained on the real
training pictures (the Frechet distance is over its features: not FID). Every figure is in
`results/bundled-fashion.json`.

| | accuracy | Frechet distance |
|---|---|---|
| real pictures | {real:.3f} | |
| restored from 16 tokens ({psnr:.2f} dB) | {back:.3f} | {back_frechet:.1f} |
| drawn, guidance {scale:g} | {accuracy:.3f} | {frechet:.1f} |

## Limits

It draws gray clothes of 32 x 32 px and nothing else.

## Sources of the training images, with licences

{works}
"""
