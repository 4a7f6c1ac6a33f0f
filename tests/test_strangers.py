"""Model folders from strangers: what they ask for is compared with what they hold, and refused in one line."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from channelvq import CAR, CVQTokenizer
from channelvq.errors import InputError
from channelvq.nn.detector import Detector
from channelvq.nn.perceptual import PerceptualNetwork
from channelvq.pretrained import PACKAGE

LOADERS: dict[str, Callable[[Path], torch.nn.Module]] = {
    "car": CAR.from_pretrained, "tokenizer": CVQTokenizer.from_pretrained, "detector": Detector.load,
    "perceptual": PerceptualNetwork.load,
}  # fmt: skip
GPT2 = {"model_type": "gpt2", "n_embd": 256, "n_layer": 6, "n_head": 4, "vocab_size": 683}
ATTACKS: dict[str, tuple[str, dict[str, Any]]] = {
    "10**12 codes": ("tokenizer", {"quantizer.codebook_size": 10**12}),
    "all codes allowed": ("tokenizer", {"quantizer.codebook_size": 2**22}),
    "10**9 pixels": ("tokenizer", {"image_size": 10**9}),
    "10**9 pixels, patch-wise": ("tokenizer", {"image_size": 10**9, "axis": "patch"}),
    "all pixels allowed": ("tokenizer", {"image_size": 2**14}),
    "10**5 blocks": ("tokenizer", {"network.num_blocks": 10**5}),
    "10**9 blocks": ("tokenizer", {"network.num_blocks": 10**9}),
    "10**12 channels, a prime": ("tokenizer", {"network.base_channels": 10**12 + 39}),
    "10**6 latent channels": ("tokenizer", {"latent_channels": 10**6}),
    "10**30 latent channels": ("tokenizer", {"latent_channels": 10**30}),
    "a scalar code of all codes": ("tokenizer", {"quantizer": {"kind": "lfq", "codebook_size": 2**18}}),
    "ema codes": ("tokenizer", {"quantizer": {"kind": "ema", "codebook_size": 2**22}}),
    "a basis of whole images": ("tokenizer", {"network": {"kind": "linear", "components": 10**9}, "image_size": 2**14}),
    "10**9 layers": ("car", {"backbone.num_hidden_layers": 10**9}),
    "10**5 layers": ("car", {"backbone.num_hidden_layers": 10**5}),
    "10**9 wide": ("car", {"backbone.hidden_size": 10**9}),
    "10**12 words": ("car", {"backbone.vocab_size": 10**12}),
    "a mask of 10**12": ("car", {"backbone": GPT2 | {"n_positions": 10**6}}),
    "10**5 blocks of a detector": ("detector", {"num_blocks": 10**5}),
    "10**9 pixels of a detector": ("detector", {"image_size": 8 * 10**9}),
    "10**9 widths": ("perceptual", {"embedding": 10**9}),
    "10**5 blocks of features": ("perceptual", {"num_blocks": 10**5}),
}  # fmt: skip
LIMIT_SECONDS, LIMIT_BYTES = 1.0, 300 * 2**20


def copy(name: str, place: Path) -> Path:
    return Path(shutil.copytree(PACKAGE / "bundled" / name, place))


def change(folder: Path, changes: dict[str, Any]) -> None:
    """Settings by dotted names."""
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    for name, value in changes.items():
        *above, last = name.split(".")
        inside = settings
        for key in above:
            inside = inside[key]
        inside[last] = value
    path.write_text(json.dumps(settings))


def refused(kind: str, folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        LOADERS[kind](folder)
    return str(caught.value)


def attacked(names: list[str], place: Path) -> list[tuple[str, str, float, int]]:
    """(name, message, seconds, bytes of memory beyond those before) of attacks, one after the other."""
    import resource

    def peak() -> int:
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    for kind, load in LOADERS.items():  # what is imported is not the attack's
        load(PACKAGE / "bundled" / kind)
    results = []
    for name in names:
        kind, changes = ATTACKS[name]
        folder = copy(kind, place / str(len(results)))
        change(folder, changes)
        before, began = peak(), time.process_time()  # not what others on the machine take
        try:
            LOADERS[kind](folder)
            message = "loaded"
        except InputError as error:
            message = str(error)
        results.append((name, message, time.process_time() - began, peak() - before))
    return results


@pytest.mark.skipif(sys.platform == "win32", reason="peak memory")
def test_sizes_are_refused_before_anything_is_allocated(tmp_path: Path) -> None:
    code = (
        f"import json, sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from pathlib import Path; "
        f"import test_strangers as t; print(json.dumps(t.attacked(list(t.ATTACKS), Path({str(tmp_path)!r}))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert [name for name, *_ in results] == list(ATTACKS)
    for name, message, seconds, size in results:
        assert "config.json" in message, (name, message)
        assert len(message) < 400, (name, message)
        assert seconds < LIMIT_SECONDS, (name, seconds)
        assert size < LIMIT_BYTES, (name, size)


@pytest.mark.parametrize("kind", LOADERS)
def test_weights_that_are_not_numbers_of_the_right_kind_are_named(kind: str, tmp_path: Path) -> None:
    folder = copy(kind, tmp_path / "model")
    path = folder / "model.safetensors"
    good = load_file(path)
    name = next(name for name, tensor in good.items() if tensor.dtype == torch.float16)
    broken = good[name].clone()
    broken.view(-1)[-1] = torch.nan
    for bad, part in (
        (broken, f"hold NaN or infinity, such as {name}"),
        (good[name].long(), f"{name} is torch.int64, expected torch.float32"),
        (good[name].to(torch.complex64), f"expected numbers of type .* got {name}"),
        (good[name].to(torch.float8_e4m3fn), f"expected numbers of type .* got {name}"),
    ):
        save_file(good | {name: bad}, path)
        with pytest.raises(InputError, match=part):
            LOADERS[kind](folder)
    save_file({n: t.bfloat16() if t.is_floating_point() else t for n, t in good.items()}, path)
    if kind != "car":  # whose codebook would no longer be that of its tokenizer
        assert LOADERS[kind](folder).state_dict()[name].isfinite().all()


@pytest.mark.parametrize("kind", LOADERS)
def test_deep_settings_are_damage(kind: str, tmp_path: Path) -> None:
    folder = copy(kind, tmp_path / "model")
    for text in ("[" * 10**5, '{"a":' * 10**5 + "1" + "}" * 10**5, "\xff", "9" * 5000):
        (folder / "config.json").write_text(text, encoding="latin-1")
        assert "config.json" in refused(kind, folder)
    change_to = {f"setting_{i}": "x" * 10**5 for i in range(100)}
    (folder / "config.json").write_text(json.dumps(change_to))
    assert len(refused(kind, folder)) < 5000


@pytest.mark.parametrize("backbone", ["attacker/model", ".", {"hidden_size": 256}])
def test_a_saved_generator_names_no_other_model(backbone: Any, tmp_path: Path) -> None:
    folder = copy("car", tmp_path / "model")
    change(folder, {"backbone": backbone})
    assert "a saved generator" in refused("car", folder)


@pytest.mark.parametrize(
    "key", ["auto_map", "_attn_implementation", "attn_implementation", "quantization_config", "_name_or_path"]
)
@pytest.mark.parametrize("place", ["backbone", "backbone.rope_parameters"])
def test_a_saved_generator_asks_for_no_code(place: str, key: str, tmp_path: Path) -> None:
    folder = copy("car", tmp_path / "model")
    change(folder, {f"{place}.{key}": "attacker/kernels"})
    assert "is no setting of a saved generator" in refused("car", folder)


@pytest.mark.parametrize("kind", LOADERS)
def test_a_local_folder_is_loaded_without_the_network(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*_: object) -> None:
        raise AssertionError("a connection")

    monkeypatch.setattr("socket.socket.connect", connect)
    monkeypatch.setattr("socket.getaddrinfo", connect)
    LOADERS[kind](copy(kind, tmp_path / "model"))


@pytest.mark.parametrize("source", ["bundled", "folder", "me/repository"])
@pytest.mark.parametrize("kind", [CAR, CVQTokenizer])
def test_options_that_do_not_exist_are_named(kind: Any, source: str, tmp_path: Path) -> None:
    if source == "folder":
        source = str(copy("car" if kind is CAR else "tokenizer", tmp_path / "model"))
    with pytest.raises(InputError, match="there is no option precision, sampler"):
        kind.from_pretrained(source, precision="half", sampler="greedy", revision="main")
    if source != "me/repository":
        kind.from_pretrained(source, revision="main")
