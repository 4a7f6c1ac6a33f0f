"""`cvq report`: an honest look at a generator, as figures and as one HTML page.

How well it predicts held-out images channel by channel, whether it listens to its prompt, what its own mistakes cost
it, whether its samples are copies of training images, how much they vary, and what guidance and temperature do.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from channelvq.car.model import CAR
from channelvq.car.sampling import Sampler
from channelvq.car.settings import SamplingSettings
from channelvq.config import to_dict
from channelvq.data.stream import distinct, fixed_images
from channelvq.errors import InputError
from channelvq.evaluate.distances import kernel_distance
from channelvq.evaluate.features import embeddings, perceptual_space
from channelvq.evaluate.metrics import with_interval
from channelvq.evaluate.next_channel import evaluate_next_channel
from channelvq.evaluate.page import Pictures, details, document, pairs
from channelvq.evaluate.page import figures as picture_list
from channelvq.evaluate.plots import channel_curves, check_plot
from channelvq.evaluate.results import make_record, protocol, write_json, write_text
from channelvq.evaluate.tables import TextTable
from channelvq.images import grid, normalize, save_image, to_pil, to_uint8
from channelvq.nn.perceptual import PerceptualNetwork
from channelvq.report.samples import SampleReport, sample_report
from channelvq.report.token_sets import TokenSets, parameters, scenes, token_sets
from channelvq.train.car_task import CARRecipe

TRAINING = 4096  # images that samples are compared with
COUNTED = 40_000  # training images whose codes are counted; each has to be tokenized first
GUIDANCE, TEMPERATURE = (1.0, 2.0, 3.0, 5.0), (0.7, 1.0)
SHOWN = 8


@dataclass(frozen=True)
class ReportSettings:
    """prompts: of the held-out captions, the first that differ. seeds: images of each. sweep: also other guidance and
    temperatures, each setting with all prompts and seeds.
    """

    prompts: int = 64
    seeds: int = 4
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    sweep: bool = False


def run(
    car: CAR, name: str, recipe: CARRecipe, folder: Path, settings: ReportSettings, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure, write report.html, its pictures and report.json to `folder`, and return the result.

    recipe: draws the held-out images and says what the generator was trained on. Raises InputError where the held-out
    images have fewer than two captions.
    """
    check_plot()
    sets = _distinct_sets(recipe, car)
    prompts = list(dict.fromkeys(sets.test.captions))[: settings.prompts]
    if len(prompts) < 2:
        raise InputError("report: the held-out images of the recipe have one caption; it takes two to compare")
    say(f"predicting {len(sets.test)} held-out images")
    prediction = evaluate_next_channel(car, sets.test, sets.train_ids).to_dict()
    network = PerceptualNetwork.load("bundled").to(car.device)
    say(f"drawing {len(prompts)} prompts x {settings.seeds} seeds")
    samples = draw(car, prompts, settings.seeds, settings.sampling)
    training = fixed_images(scenes(recipe, car.tokenizer, "train"), TRAINING)
    training = training[distinct(training)]
    sampled = sample_report(
        _embedded(network, samples).view(len(prompts), settings.seeds, -1),
        _embedded(network, training),
        _embedded(network, _restored(car, sets)),
    )
    metrics: dict[str, Any] = prediction | {"samples": sampled.to_dict() | {"count": len(samples)}}
    pictures = _pictures(car, prompts, samples, training, sampled, prediction)
    if settings.sweep:
        metrics["sweep"] = _sweep(car, prompts, settings, sets, network, say)
        pictures["guidance"] = _guided(car, prompts, settings.sampling)
    names = "+".join(recipe.data.sources)
    asked = _protocol(settings, network, len(training), len(sets.train_ids))
    how = protocol(
        sets.images, data=f"{names}, as the recipe draws them", split="test", resize="see recipe", crop="see recipe",
        tokenizer=car.tokenizer,
    ) | {"recipe": to_dict(recipe.data)} | asked  # fmt: skip
    entry = make_record(car.tokenizer.config, data=names, split="held-out", metrics=metrics)
    result = {"protocol": how, "records": [entry | {"car": name, "parameters": parameters(car)}]}
    write_json(folder / "report.json", result)
    for title, (image, _) in pictures.items():
        save_image(image, folder / f"{title}.png")
    write_text(folder / "report.html", page(name, result, pictures))
    return result


def _distinct_sets(recipe: CARRecipe, car: CAR) -> TokenSets:
    """What it is measured with, every held-out picture once."""
    sets = token_sets(recipe, car.tokenizer, COUNTED)
    places = distinct(sets.images)
    return TokenSets(sets.test.subset(places), sets.images[places], sets.train_ids)


def draw(car: CAR, prompts: Sequence[str], seeds: int, sampling: SamplingSettings) -> UInt8[Tensor, "n 3 h w"]:
    """Images of every prompt, its seeds one after the other; image i has seed + i."""
    ids = Sampler(car, sampling).generate([prompt for prompt in prompts for _ in range(seeds)]).ids
    return to_uint8(car.tokenizer.detokenize(ids, "tensor")).cpu()


def _embedded(network: PerceptualNetwork, images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n E"]:
    return embeddings(network, images).cpu()


def _restored(car: CAR, sets: TokenSets) -> UInt8[Tensor, "n 3 h w"]:
    """Held-out images as the tokenizer restores them: a generator cannot be sharper."""
    return to_uint8(car.tokenizer.detokenize(sets.test.ids[:, : car.num_tokens].long(), "tensor")).cpu()


def _protocol(settings: ReportSettings, network: PerceptualNetwork, training: int, counted: int) -> dict[str, Any]:
    return {
        "prompts": settings.prompts,
        "seeds": settings.seeds,
        **asdict(settings.sampling),
        "sweep": settings.sweep,
        "counts_alone": f"over {counted} training images",
        "nearest": f"1 - cosine in the embeddings of the bundled perceptual network, among {training} training images",
        "feature_network": perceptual_space(network).network,
    }


def _sweep(
    car: CAR,
    prompts: list[str],
    settings: ReportSettings,
    sets: TokenSets,
    network: PerceptualNetwork,
    say: Callable[[str], None],
) -> list[dict[str, float]]:
    """By guidance and temperature: kernel distance to the restored held-out images, and how much samples vary."""
    real = _embedded(network, _restored(car, sets))
    found = []
    for guidance in GUIDANCE:
        for temperature in TEMPERATURE:
            say(f"guidance {guidance:g}, temperature {temperature:g}")
            sampling = replace(settings.sampling, guidance_scale=guidance, temperature=temperature)
            drawn = _embedded(network, draw(car, prompts, settings.seeds, sampling))
            by_prompt = sample_report(drawn.view(len(prompts), settings.seeds, -1), real, real).to_dict()
            count = min(len(drawn), len(real))  # the distance takes two sets of one size
            kid = kernel_distance(drawn[:count], real[:count])
            row = {"guidance_scale": guidance, "temperature": temperature, "kid": kid}
            found.append(row | {name: by_prompt[name] for name in ("over_seeds", "over_prompts")})
    return found


def _pictures(
    car: CAR,
    prompts: list[str],
    samples: Tensor,
    training: Tensor,
    sampled: SampleReport,
    prediction: dict[str, Any],
) -> dict[str, tuple[Image.Image, str]]:
    seeds = len(samples) // len(prompts)
    shown = min(SHOWN, len(prompts))
    first = samples.view(len(prompts), seeds, *samples.shape[1:])[:shown]
    by_seed = first.transpose(0, 1).flatten(0, 1)
    closest = sampled.nearest_training.argsort()[:SHOWN]
    copies = torch.cat([samples[closest], training[sampled.place[closest]]])
    return {
        "samples": (_grid(by_seed, shown, prompts[:shown]), "A column a prompt, a row a seed; nothing picked."),
        "nearest": (
            _grid(copies, len(closest), [f"{value:.3f}" for value in sampled.nearest_training[closest]]),
            "The samples nearest to a training image (above) and that image (below), with their distance.",
        ),
        "by-channel": (
            _curves(prediction),
            "Accuracy of the likeliest token: told the truth so far, or after its own tokens.",
        ),
    }


def _grid(images: Tensor, columns: int, captions: Sequence[str]) -> Image.Image:
    texts = [*captions, *[""] * (len(images) - len(captions))]
    return grid(to_pil(normalize(images)), columns, captions=texts, scale=2)


def _curves(prediction: dict[str, Any]) -> Image.Image:
    curves = prediction["by_channel"]
    free = {f"free after {k}": (int(k), values) for k, values in curves["free_running"].items()}
    with TemporaryDirectory() as place:
        path = Path(place) / "curves.png"
        channel_curves({"told the truth": (0, curves["top1"])} | free, "accuracy", path)
        return Image.open(path).convert("RGB")


def _guided(car: CAR, prompts: list[str], sampling: SamplingSettings) -> tuple[Image.Image, str]:
    shown = prompts[:SHOWN]
    settings = [replace(sampling, guidance_scale=guidance, temperature=1.0) for guidance in GUIDANCE]
    images = torch.cat([draw(car, shown, 1, each) for each in settings])
    scales = ", ".join(f"{guidance:g}" for guidance in GUIDANCE)
    return _grid(images, len(shown), shown), f"A column a prompt; guidance {scales} from top to bottom, temperature 1."


def figures(result: dict[str, Any]) -> list[tuple[str, str]]:
    """(name, value) for people."""
    m = result["records"][0]["metrics"]
    s = m["samples"]
    free = m["by_channel"]["free_running"]["0"]

    return [
        ("nats a token", with_interval(m, "nats")),
        ("with the caption of another image", f"{m['nats_shuffled']:.3f}"),
        ("by the counts of each channel alone", f"{m['nats_unigram']:.3f}"),
        ("likeliest token is the true one, told the truth", f"{m['top1']:.1%}"),
        ("the same, running free", f"{sum(free) / len(free):.1%}"),
        ("sample to nearest training image", with_interval(s, "nearest_training")),
        ("held-out image to nearest training image", with_interval(s, "nearest_training_of_held_out")),
        ("samples nearer than any held-out image", f"{s['nearer_than_any_held_out']:.1%}"),
        ("distance over seeds of one prompt", with_interval(s, "over_seeds")),
        ("distance over prompts", with_interval(s, "over_prompts")),
    ]


def page(name: str, result: dict[str, Any], pictures: Pictures) -> str:
    """The report as one HTML document."""
    how = result["protocol"]
    sweep = result["records"][0]["metrics"].get("sweep", [])
    settings = TextTable(SWEPT, [[f"{row[key]:.4g}" for key in SWEPT] for row in sweep]).html()
    return document(
        f"cvq report: {name}",
        f"{how['data']}, n = {how['n']}",
        pairs(figures(result)),
        picture_list(pictures),
        f"<h2>Guidance and temperature</h2>{settings}" if sweep else "",
        details("How it was measured", pairs(how.items())),
    )


SWEPT = ("guidance_scale", "temperature", "kid", "over_seeds", "over_prompts")
