"""How the bundled generator is best sampled: GenEval on the validation prompts, an image each, for several settings."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from channelvq.car.model import CAR
from channelvq.car.settings import SamplingSettings
from channelvq.data.drawn.captions import TASKS
from channelvq.evaluate.geneval.prompts import prompt_set
from channelvq.evaluate.geneval.report import judge, protocol
from channelvq.evaluate.geneval.run import drawn_geneval
from channelvq.evaluate.results import write_json
from channelvq.evaluate.tables import TextTable
from channelvq.nn.detector import Detector
from lab.results import read_result
from lab.study import Study, Tables

HOURS = 0.3
RESULT = "geneval-sampling.json"
DRAWN = Path("runs/geneval-sampling")
SETTINGS = (
    *(SamplingSettings(guidance_scale=scale, temperature=t) for t in (1.0, 0.7, 0.5) for scale in (1.0, 2.0, 3.0, 5.0)),
)
VARIED = tuple(setting.name for setting in fields(SamplingSettings) if setting.name != "seed")
HEADINGS = ("guidance", "temperature", "top-k", "top-p", "overall (95 %)")


def run(path: Path, store: Path = DRAWN) -> dict[str, Any]:
    """Draw what is not in `store` yet, and judge; the result file."""
    car, detector = CAR.from_pretrained("bundled"), Detector.load("bundled")
    prompts = prompt_set("validation", car.tokenizer.image_size)
    records = []
    for sampling in SETTINGS:
        folder = store / _name(sampling)
        images = drawn_geneval(car, prompts, 1, sampling, folder, lambda done, total: None)
        judged = judge(detector, prompts.prompts, images)
        scores, overall = judged.scores(), judged.intervals()["overall"]
        metrics = {**scores, "interval": overall, "faults": judged.fault_shares()}
        records.append({**{name: getattr(sampling, name) for name in VARIED}, "metrics": metrics})
    how = {key: value for key, value in protocol(car, detector, SETTINGS[0], 1).items() if key != "sampling"}
    result = {"protocol": {**how, "split": "validation", "prompts_sha256": prompts.sha256}, "records": records}
    write_json(path, result)
    return result


def _name(sampling: SamplingSettings) -> str:
    return "-".join(f"{name}={getattr(sampling, name):g}" for name in VARIED)


def load(path: Path) -> dict[str, Any]:
    """A stored result; raises InputError when there is none."""
    needs = (*(f"records.{name}" for name in VARIED), "records.metrics.overall", "records.metrics.interval")
    return read_result(path, needs, "make it with --rerun")


def settings(result: dict[str, Any]) -> TextTable:
    """A row a setting: its score and those of the tasks."""
    tasks = [task for task in TASKS if task in result["records"][0]["metrics"]]
    rows = []
    for record in result["records"]:
        m = record["metrics"]
        cells = [f"{record[name]:g}" for name in VARIED]
        cells.append(f"{m['overall']:.3f} ({m['interval'][0]:.3f} to {m['interval'][1]:.3f})")
        rows.append([*cells, *(f"{m[task]:.3f}" for task in tasks)])
    return TextTable([*HEADINGS, *(task.replace("_", " ") for task in tasks)], rows)


STUDY = Study(run, load)
TABLES: Tables = {"geneval-sampling": (RESULT, settings)}
