"""The detector that ships in the package: from a finished run to weights, model card and results."""

from pathlib import Path
from typing import Any

from channelvq.data.fetched.catalogue import PACKAGES
from channelvq.data.stream import position_generator
from channelvq.evaluate.geneval.prompts import prompt_set
from channelvq.evaluate.geneval.report import judge
from channelvq.evaluate.geneval.score import in_order
from channelvq.evaluate.results import git_revision, library_versions
from channelvq.evaluate.tables import TextTable
from channelvq.files import replaced_folder
from channelvq.nn.detector import Detector
from channelvq.pictures import restored
from channelvq.pretrained import weights_sha256
from channelvq.tokenizer import CVQTokenizer
from lab.bundle.degrade import degraded
from lab.bundle.detector_task import DetectorRecipe
from lab.bundle.tokenizer import copy_stored, credits_of, finished_run, halve, write_with_card
from lab.study import Tables

RECIPE = "lab/bundle/detector.yaml"
SAMPLES = 4  # scenes of each prompt
SOURCES = ("emojibase-data", "fluent-emoji")
KINDS = {
    "real": "scenes as they are drawn",
    "damaged": "blurred, reduced, compressed or noisy, as in training",
    "restored": "by the bundled tokenizer from all its tokens, as in training",
}


def bundle(run_dir: Path, package: Path, results: Path, command: str) -> dict[str, Any]:
    """Half-precision weights and model card into `package`/detector, scores on test scenes into `results`.

    Measured on the weights as they are stored; the package keeps what it had until all of it is there. Raises
    InputError where the run is not finished or the emoji package is not there.
    """
    _, facts = finished_run(run_dir, DetectorRecipe, command)
    with replaced_folder(package / "detector") as folder:
        copy_stored(run_dir / "final", folder, halve)
        result = {"run": facts, **measure(Detector.load(folder))}
        return write_with_card(results / "detector.json", result, folder, model_card)


def measure(detector: Detector, samples: int = SAMPLES) -> dict[str, Any]:
    """{"protocol", "records"}: GenEval scores of real scenes of the test prompts, as they are and made worse."""
    prompts = prompt_set("test", detector.config.image_size)
    real = prompts.scenes(samples)
    images = {
        "real": real,
        "damaged": degraded(real, [position_generator(1, i) for i in range(len(real))]),  # always the same damage
        "restored": restored(CVQTokenizer.from_pretrained("bundled"), real, exact=False),
    }
    records = []
    for kind, pictures in images.items():
        judged = judge(detector, prompts.prompts, pictures)
        records.append({"images": kind, "scores": judged.scores(), "intervals": judged.intervals()})
    how = {
        "prompts_sha256": prompts.sha256, "prompts": len(prompts.plans), "samples_per_prompt": samples, "split": "test",
        "images": KINDS, "detector_sha256": weights_sha256(detector), "threshold": detector.config.threshold,
        "parameters": sum(p.numel() for p in detector.parameters()), "git": git_revision(),
        "libraries": library_versions(("channelvq", "torch", "pillow")),
    }  # fmt: skip
    return {"protocol": how, "records": records}


def scores(result: dict[str, Any]) -> TextTable:
    """The scores of each kind of images by task."""
    tasks = in_order(result["records"][0]["scores"])
    rows = [[r["images"], *(f"{r['scores'][task]:.3f}" for task in tasks)] for r in result["records"]]
    return TextTable(["images", *(task.replace("_", " ") for task in tasks)], rows)


TABLES: Tables = {"detector": ("detector.json", scores)}


def model_card(result: dict[str, Any]) -> str:
    """README.md of the bundled detector, every figure from the result file."""
    run, how = result["run"], result["protocol"]
    return CARD.format(
        command=run["command"], steps=run["steps"], batch=run["recipe"]["train"]["batch_size"],
        minutes=run["training_seconds"] / 60, machine=run["machine"], torch=run["torch"], git=run["git"],
        millions=how["parameters"] / 1e6, threshold=how["threshold"], prompts=how["prompts"],
        samples=how["samples_per_prompt"], rows=scores(result).markdown(), restored=run["recipe"]["restored"],
        shifted=run["recipe"]["shifted"], damaged=run["recipe"]["damaged"],
        kinds="\n".join(f"- {kind}: {what}" for kind, what in KINDS.items()),
        works=credits_of(w for source in SOURCES for w in PACKAGES[source].works),
    )  # fmt: skip


CARD = """---
library_name: channelvq
license: apache-2.0
pipeline_tag: object-detection
tags: [object-detection, geneval]
---
# The bundled detector

Finds the things in a 64 x 64 px scene of channelvq: one of 63 classes, the likeliest of ten colours, box and score;
{millions:.1f} M parameters, stored in half precision. `cvq evaluate geneval` judges images by it. It knows these scenes
and nothing else: its scores are not those of the official GenEval detector.

```python
from channelvq.nn.detector import Detector

Detector.load("bundled").detect(images)  # uint8 (B, 3, 64, 64) -> the detections of each image
```

## Training

`{command}`: {steps} steps of {batch} images, {minutes:.0f} minutes on {machine}, torch {torch}, revision `{git}`.

Scenes of the training split, drawn as it went, so none came twice. A share of {restored} of them was restored by the
bundled image tokenizer from a random prefix of its tokens, a share of {damaged} was blurred, reduced, JPEG-compressed
or made noisy. It has seen nothing that a generator drew, nor the tokenizer of the bundled generator. The least
score of a detection, {threshold}, is the best one for validation scenes. What a thing in one of the ten colours is
called was learned with the colours of the scene shifted at random (a share of {shifted} of such scenes), since a
detector that never saw an orange tv comes to think that there is none.

## Held-out results

GenEval scores of {samples} scenes of each of {prompts} prompts whose combinations (class and colour, class and count,
two classes, relation) were never trained on. Every figure is in `results/detector.json`.

{rows}

{kinds}

## Sources of the training images, with licences

- Scenes drawn by channelvq (Apache-2.0), with the sprites and labels of:
{works}
"""
