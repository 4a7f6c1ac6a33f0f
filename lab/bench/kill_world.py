"""The folder in which commands are killed: tiny models, pictures and files, the commands, and what is compared."""

import hashlib
import json
import os
import pkgutil
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

TINY = (
    "train.batch_size=4", "train.log_every=1", "train.device=cpu", "train.steps=6", "train.checkpoint_every=2",
    "train.evaluate_every=3", "train.output_dir=out", "train.resume=true", "data.validation_images=4",
)  # fmt: skip
TINY_TOKENIZER = (
    "model.image_size=32", "model.latent_channels=8", "model.network.base_channels=8", "model.network.stem=2",
    "model.quantizer.codebook_size=16", "objective.start_images=16", "train.ema=0.9",
)  # fmt: skip
TINY_CAR = (
    "tokenizer=tok", "objective.train_images=16", "objective.text_vocab_size=280", "train.precision=no",
    "objective.lm_steps=2", "objective.stage1_steps=2", "model.max_text_tokens=128", "train.compile=false",
    "data.sources={scenes: {kind: scenes, sprites: shapes}}",
    "model.backbone={model_type: qwen3, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2,"
    " num_key_value_heads: 2, head_dim: 16, intermediate_size: 64}",
)  # fmt: skip
# By what they are called in the table. All that a command reads is in the world, and all of its outputs.
COMMANDS: dict[str, list[str]] = {
    "train (tokenizer)": ["train", "small/smoke", *TINY, *TINY_TOKENIZER],
    "train (generator)": ["train", "small/scenes-car", *TINY, *TINY_CAR],
    "tokenize": ["tokenize", "pictures", "-t", "tok", "-o", "out/ids.json"],
    "detokenize": ["detokenize", "tokens.json", "-t", "tok", "-o", "out"],
    "reconstruct": ["reconstruct", "pictures", "-t", "tok", "-o", "out"],
    "encode": ["encode", "pictures", "-t", "tok", "-o", "out"],
    "decode": ["decode", "cvq", "-t", "tok", "-o", "out"],
    "tables": ["tables", "pictures", "-t", "tok"],
    "generate --stream": ["generate", "a red cat", "a dog", "-c", "car", "-o", "out", "--stream", "steps",
                          "--every", "2"],
    "data shard": ["data", "shard", "pictures", "out", "--images-per-shard", "5"],
    "data tokenize": ["data", "tokenize", "tars", "-t", "tok", "-o", "out"],
    "evaluate reconstruction": ["evaluate", "reconstruction", "tok", "pictures", "--features", "none",
                                "--json", "out/r.json", "--markdown", "out/r.md"],
    "evaluate geneval": ["evaluate", "geneval", "car", "--prompts", "prompts", "--samples", "1", "-o", "out"],
    "doctor": ["doctor", "tok", "pictures", "-o", "out", "--json", "out.json"],
    "compare": ["compare", "a.json", "b.json", "--json", "out/c.json", "--markdown", "out/c.md"],
    "report": ["report", "car", "--recipe", "out-recipe.yaml", "--prompts", "2", "--seeds", "2", "-o", "out",
               "--json", "out.json"],
    "export": ["export", "car", "out"],
    "plan": ["plan", "small/smoke", "--json", "out/plan.json"],
}  # fmt: skip
SLOW = ("report",)
# Figures of time and memory, which no two calls share.
TIMES = re.compile(r"seconds|per_second|peak_memory|^date$|^time$|^git$")


def import_all() -> None:
    """What commands import, so that their forks begin at once."""
    import accelerate
    import transformers.models.qwen3.modeling_qwen3

    import channelvq
    import channelvq.cli

    del accelerate, transformers
    for module in pkgutil.walk_packages(channelvq.__path__, "channelvq."):
        if not re.search(r"\.(app|serve|onnx_export|__main__|bundled|recipes|triton_kernel)\b", module.name):
            import_module(module.name)


def make_world(base: Path) -> Path:
    """Fill the folder `base`."""
    import numpy as np
    from PIL import Image

    for name in ("pictures", "cache", "home", "tmp", "prompts"):
        (base / name).mkdir(parents=True)
    for i in range(24):
        pixels = np.random.default_rng(i).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((50, 40), Image.Resampling.BICUBIC).save(base / f"pictures/{i:02d}.png")
        (base / f"pictures/{i:02d}.txt").write_text(f"picture {i}")
    for name in ("a red cat", "a green dog"):
        (base / f"prompts/{name}.txt").write_text(name)
    _models(base)
    _files(base)
    return base


def _models(base: Path) -> None:
    from channelvq import CAR, CVQTokenizer
    from channelvq.car.config import CARConfig
    from channelvq.car.text import TextTokenizer, train_bpe
    from channelvq.nn.conv import ConvConfig
    from channelvq.quantize.codebook import PlainConfig
    from channelvq.tokenizer import CVQConfig

    torch.manual_seed(0)
    network = ConvConfig(base_channels=8, multipliers=(1, 1), num_blocks=1, attention=False, stem=2)
    config = CVQConfig(image_size=32, latent_channels=8, network=network, quantizer=PlainConfig(codebook_size=32))
    tokenizer = CVQTokenizer(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        tokenizer.quantizer.start_from(tokenizer.encoder(torch.randn(64, 3, 32, 32, generator=generator)), generator)
    tokenizer.save_pretrained(base / "tok")
    backbone = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    words = TextTokenizer(train_bpe(["a photo of a red cat and a green dog"], 280))
    settings = CARConfig(backbone=backbone, max_text_tokens=128)
    CAR(settings, tokenizer, words, generator=generator).eval().save_pretrained(base / "car")


def _files(base: Path) -> None:
    """What commands read that others wrote."""
    from channelvq.config import save
    from channelvq.train.run import load_recipe
    from lab.bench.kills import call

    with_words = [
        ["tokenize", "pictures", "-t", "tok", "-o", "tokens.json"],
        ["encode", "pictures", "-t", "tok", "-o", "cvq"],
        ["data", "shard", "pictures", "tars", "--images-per-shard", "5"],
        *(["evaluate", "reconstruction", "tok", "pictures", "--features", "none", "--json", f"{name}.json"]
          for name in ("a", "b")),
    ]  # fmt: skip
    for words in with_words:
        ended = call(words, base)
        assert ended.code == 0, ended.text
    save(load_recipe("small/scenes-car", list(TINY_CAR)), base / "out-recipe.yaml")


def compared(world: Path) -> dict[str, str]:
    """Every file and folder of a world by its path, with a digest of what does not tell the time.

    Of the cache the names alone: what it holds is keyed by the place of the world.
    """
    found: dict[str, str] = {}
    for here, folders, files in os.walk(world):
        for name in folders:
            found[os.path.relpath(os.path.join(here, name), world) + "/"] = ""
        for name in files:
            path = Path(here, name)
            inside = path.relative_to(world).as_posix()
            found[inside] = "" if inside.startswith("cache/") or name == "SHA256SUMS" else _digest(path)
    return found


def _digest(path: Path) -> str:
    readers: dict[str, Callable[[bytes], Any]] = {
        ".json": json.loads, ".jsonl": lambda content: [json.loads(line) for line in content.splitlines()],
    }  # fmt: skip
    content = path.read_bytes()
    if path.suffix in readers:
        content = json.dumps(_timeless(readers[path.suffix](content)), sort_keys=True).encode()
    elif path.suffix == ".safetensors":  # the library writes metadata in any order
        end = 8 + int.from_bytes(content[:8], "little")
        content = json.dumps(json.loads(content[8:end]), sort_keys=True).encode() + content[end:]
    elif path.suffix == ".bin":  # torch's pickles hold equal things once or several times
        content = repr(_plain(torch.load(path, weights_only=True))).encode()
    elif path.name == "README.md":  # how long a training took
        content = re.sub(rb"\d+ (seconds|minutes|hours)", b"", content)
    return hashlib.sha256(content).hexdigest()


def _plain(value: Any) -> Any:
    """Tensors as the bytes that they are."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(inner) for key, inner in value.items() if not TIMES.search(key)}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value
