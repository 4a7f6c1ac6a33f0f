"""Where to compute: what can be asked for, what is refused, and that models go where they are told."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from channelvq import CAR, CVQTokenizer
from channelvq.devices import DTYPES, resolve_device, resolve_dtype
from channelvq.errors import InputError
from channelvq.train.config import TrainConfig
from channelvq.train.launch import build_accelerator, check_installed

Cvq = Callable[..., tuple[int, str, str]]
META = torch.device("meta")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(b"never read")
    return tmp_path


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_auto_is_the_cpu_and_cuda_an_error() -> None:
    assert resolve_device("auto") == resolve_device("cpu") == torch.device("cpu")
    for name in ("cuda", "cuda:0", torch.device("cuda")):
        with pytest.raises(InputError, match=r"device 'cuda.*finds no CUDA GPU; use cpu, or install"):
            resolve_device(name)


@pytest.mark.usefixtures("two_gpus")
def test_with_two_gpus_each_can_be_named_and_no_third() -> None:
    assert resolve_device("auto") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(InputError, match="there are 2 CUDA GPUs, give cuda:0 to cuda:1"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:", "cuda:x", "xpu", "meta", "cpu cpu"])
def test_other_names_are_refused_with_those_that_are_known(name: str) -> None:
    with pytest.raises(InputError, match="expected auto, cpu, cuda or cuda:n"):
        resolve_device(name)


def test_apples_gpu_is_refused_for_its_missing_float64() -> None:
    for given in ("mps", "mps:0", torch.device("mps")):
        with pytest.raises(InputError, match="it has no float64"):
            resolve_device(given)


def test_no_training_takes_apples_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    accelerator = build_accelerator(TrainConfig(output_dir=str(tmp_path)), idle_parameters=False)
    assert accelerator.device == torch.device("cpu")


def test_models_are_loaded_to_where_they_are_told() -> None:
    tokenizer = CVQTokenizer.from_pretrained("bundled", device=META)
    car = CAR.from_pretrained("bundled", device=META)
    for model in (tokenizer, car):
        left = [name for name, t in (*model.named_parameters(), *model.named_buffers()) if t.device != META]
        assert not left
    assert (tokenizer.device, car.device, car.tokenizer.device) == (META, META, META)
    assert CVQTokenizer.from_pretrained("bundled", device="cpu").device == torch.device("cpu")


def test_a_model_is_not_read_before_its_device_is_there() -> None:
    for load in (CVQTokenizer.from_pretrained, CAR.from_pretrained):
        with pytest.raises(InputError, match="device 'mps'"):
            load("no/such/folder/at/all", device="mps")
        with pytest.raises(InputError, match="dtype 'int8': expected float32, bfloat16"):
            load("no/such/folder/at/all", dtype="int8")


def test_a_dtype_is_a_name_or_that_of_torch() -> None:
    assert [resolve_dtype(name) for name in DTYPES] == [resolve_dtype(getattr(torch, name)) for name in DTYPES]
    assert (resolve_dtype("bfloat16"), resolve_dtype(None)) == (torch.bfloat16, None)
    for wrong in ("half", torch.int8, 16):
        with pytest.raises(InputError, match="expected float32, bfloat16, float16, float64"):
            resolve_dtype(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["bundled", "bundled-fashion"])
def test_a_tokenizer_in_half_precision_loses_little(name: str, dtype: str) -> None:
    whole, half = CVQTokenizer.from_pretrained(name), CVQTokenizer.from_pretrained(name, dtype=dtype)
    x = torch.linspace(-1, 1, 32).outer(torch.linspace(-1, 1, 32)).expand(2, 3, 32, 32)
    expected, found = (
        whole.detokenize(whole.tokenize(x), output="tensor"),
        half.detokenize(half.tokenize(x), output="tensor"),
    )
    assert found.dtype == half.dtype == getattr(torch, dtype)
    assert all(p.dtype == half.dtype for p in half.parameters())
    assert float((found.float() - expected).square().mean()) < 1e-3  # 33 dB and better, of [-1, 1]


def test_a_generator_in_half_precision_draws_with_its_tokenizer_in_it() -> None:
    car = CAR.from_pretrained("bundled-fashion", dtype=torch.bfloat16)
    assert {p.dtype for p in car.parameters()} == {torch.bfloat16} == {car.tokenizer.dtype}
    alone, second = car.generate(["a bag"], seed=1), car.generate(["a shirt", "a bag"], seed=0)
    assert torch.equal(alone.ids[0], second.ids[1])


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    "command",
    [
        "tokenize a.png", "detokenize tokens.json", "reconstruct a.png", "encode a.png -o a.cvq",
        "encode a.png --model car -o a.cvq", "decode a.cvq -o b.png", "generate x", "report bundled",
        "evaluate reconstruction bundled .", "evaluate geneval bundled", "doctor bundled .", "demo",
        "tables a.png -t mine",
    ],
)  # fmt: skip
def test_every_command_that_computes_says_in_one_line_that_there_is_no_gpu(cvq: Cvq, here: Path, command: str) -> None:
    (here / "mine").mkdir()
    (here / "tokens.json").write_text(
        '{"tokenizer": "bundled", "tokenizer_sha256": "0", "codebook_size": 1, "images": [{"image": "a", "ids": [0]}]}'
    )
    code, _, stderr = cvq(*command.split(), "--device", "cuda:1")
    assert code == 2, stderr
    assert stderr.startswith("error: device 'cuda:1': torch")
    assert stderr.count("\n") == 1


@pytest.mark.usefixtures("no_gpu")
def test_a_training_on_a_missing_gpu_is_refused_before_it_begins() -> None:
    with pytest.raises(InputError, match="finds no CUDA GPU"):
        check_installed(TrainConfig(device="cuda"))


def test_forward_passes_take_no_tensor_of_another_device() -> None:
    # Torch refuses to mix "meta" with others as it does "cuda", so this finds what was left on the CPU.
    car = CAR.from_pretrained("bundled", device=META)
    tokenizer, ids = car.tokenizer, torch.zeros(2, 16, dtype=torch.int64, device=META)
    with torch.no_grad():
        maps = tokenizer.encoder(torch.empty(2, 3, 64, 64, device=META))
        pictures = tokenizer.decoder(maps)
        logits = car.logits(car.image_inputs(ids))  # the backbone in between is a library's
    assert (maps.device, pictures.shape, logits.shape) == (META, (2, 3, 64, 64), (2, 17, 4096))
    assert car.image_table().device == META
