"""Loading: where modules are found, and that they are not drawn before they are filled."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from channelvq import CAR, CVQTokenizer, pretrained
from channelvq.car.backbone import build_backbone
from channelvq.errors import InputError
from channelvq.nn.detector import Detector
from channelvq.nn.perceptual import PerceptualNetwork
from channelvq.pretrained import PACKAGE, find_folder, undrawn

LOADERS = {
    "car": CAR.from_pretrained,
    "tokenizer": CVQTokenizer.from_pretrained,
    "detector": Detector.load,
    "perceptual": PerceptualNetwork.load,
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The package's own folders as one repository; gives what it is asked for."""
    asked: list[dict[str, Any]] = []

    def download(source: str, **options: Any) -> str:
        asked.append({"source": source, **options})
        return str(shutil.copytree(PACKAGE / "bundled", tmp_path / "snapshot"))

    monkeypatch.setattr(pretrained, "snapshot_download", download)
    return asked


@pytest.mark.parametrize("name", LOADERS)
def test_loading_draws_no_layer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[int, ...]] = []

    def draw(tensor: Tensor, *_: Any, **__: Any) -> Tensor:
        drawn.append(tuple(tensor.shape))
        return tensor

    before = torch.get_rng_state()
    for method in ("uniform_", "normal_"):
        monkeypatch.setattr(torch.Tensor, method, draw)
    module = LOADERS[name]("bundled")
    assert set(drawn) <= {(4096, 256), (4096, 64)}  # a plain codebook draws its table itself
    assert torch.equal(torch.get_rng_state(), before)
    assert all(bool(tensor.isfinite().all()) for tensor in module.state_dict().values())
    assert not module.training


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gemma2"])
def test_tables_that_are_not_saved_are_computed(kind: str) -> None:
    config = {"model_type": kind, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 16,
              "num_key_value_heads": 2, "intermediate_size": 64, "pad_token_id": 0}  # fmt: skip
    loaded = build_backbone(config, 300, None)
    fresh = AutoModel.from_config(AutoConfig.for_model(**config, vocab_size=300))
    tables = dict(fresh.named_buffers())
    assert tables
    assert dict(loaded.named_buffers()).keys() == tables.keys()
    assert all(torch.equal(loaded.get_buffer(name), table) for name, table in tables.items())


def test_the_global_generator_is_left_alone_by_draws_out_of_place() -> None:
    before = torch.get_rng_state()
    with undrawn():
        nn.Parameter(torch.randn(3))
        assert nn.init.trunc_normal_(torch.full((3,), 9.0)).abs().max() <= 2  # it draws again what is out of bounds
    assert torch.equal(torch.get_rng_state(), before)


def test_a_repository_is_asked_for_its_files_alone(hub: list[dict[str, Any]]) -> None:
    tokenizer = CVQTokenizer.from_pretrained("me/cvq", subfolder="tokenizer", revision="v1")
    assert torch.equal(tokenizer.quantizer.codes(), CVQTokenizer.from_pretrained("bundled").quantizer.codes())
    files = ["tokenizer/config.json", "tokenizer/model.safetensors", "tokenizer/code_tables.safetensors"]
    assert hub == [{"source": "me/cvq", "allow_patterns": files, "revision": "v1"}]


def test_a_generator_is_asked_for_with_its_tokenizers(hub: list[dict[str, Any]]) -> None:
    car = CAR.from_pretrained("me/cvq", subfolder="car")
    assert torch.equal(car.head.weight, CAR.from_pretrained("bundled").head.weight)
    assert hub[0]["allow_patterns"][2:] == ["car/tokenizer.json", "car/tokenizer/*"]


def test_a_repository_without_the_files_is_named(hub: list[dict[str, Any]]) -> None:
    with pytest.raises(InputError, match=r"detector .*holds no config\.json; expected those of a saved detector"):
        find_folder("detector", "me/cvq", "detector")
    assert hub


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("runs/mien", "there is no such folder; did you mean runs/mine?"),
        ("runs/other", "there is no such folder"),
        ("./mien", "there is no such folder; did you mean ./mine?"),
        ("a/b/c", "there is no such folder"),
        ("/nowhere", "there is no such folder"),
    ],
)
def test_the_hub_is_not_asked_for_a_folder(
    name: str, said: str, hub: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("runs/mine", "mine"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        find_folder("tokenizer", name, "tokenizer")
    assert str(caught.value) == f"tokenizer {name!r}: neither 'bundled', a folder, nor a hub repository: {said}"
    assert not hub


def test_the_folder_of_a_run_says_where_its_model_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/mine/checkpoints").mkdir(parents=True)
    (tmp_path / "runs/mine/config.yaml").touch()
    goes_on = r"this run has not ended \({}\): go on with train.resume=true$"
    for name in ("runs/mine", "runs/mine/final"):
        with pytest.raises(InputError, match=goes_on.format("no checkpoint yet")):
            find_folder("tokenizer", name, "tokenizer")
    for step in (9, 161):
        (tmp_path / f"runs/mine/checkpoints/step-{step:08d}").mkdir()
    with pytest.raises(InputError, match=goes_on.format("checkpoint of step 161")):
        find_folder("tokenizer", "runs/mine", "tokenizer")
    shutil.copytree(PACKAGE / "bundled/tokenizer", tmp_path / "runs/mine/final")
    with pytest.raises(InputError, match=r"the folder of a run; the model is in runs/mine/final$"):
        find_folder("tokenizer", "runs/mine", "tokenizer")
    assert find_folder("tokenizer", "runs/mine/final", "tokenizer") == Path("runs/mine/final")
