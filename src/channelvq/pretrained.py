"""What is saved and loaded: weights as safetensors, settings as JSON, modules as folders of both.

    bundled name | folder | hub id --find_folder--> folder --load_module--> the module, in evaluation mode

A folder may come from a stranger. Nothing in it is executed, and what its settings ask for is compared with what its
weights hold before any memory is taken for it. Hashes of weights are here too: by them a result says what it was
measured with.
"""

import errno
import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from inspect import isfunction, signature
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from channelvq.byte_rows import without_byte_rows
from channelvq.config import from_dict, to_dict
from channelvq.errors import InputError, did_you_mean, reason
from channelvq.files import parse_json, replace_file, write_text_atomically

CONFIG, WEIGHTS = "config.json", "model.safetensors"
CODE_TABLES = "code_tables.safetensors"  # beside a tokenizer: how often each code is used, for `channelvq.codec`
# Of what is saved with no card of its own; whose weights they are, and under which licence, is for others to say.
PLAIN = "A model of `channelvq`, channel-wise vector quantization (arXiv 2605.26089). No licence is given here."
CARD = f"---\n{{{{ card_data }}}}\n---\n\n{PLAIN}\nWhat it is made of: config.json.\n"
PACKAGE = Path(__file__).parent
BUNDLED = PACKAGE / "bundled"
PAIRS = {"bundled-fashion": BUNDLED / "fashion"}  # generators in the package beside "bundled", each with its tokenizer
HUB_OPTIONS = signature(snapshot_download).parameters.keys()
# Functions of torch.nn.init, and of transformers in its place, by which layers fill fresh weights.
DRAWS = {"kaiming_uniform_", "normal_", "uniform_"}
# Types of numbers in a safetensors file that weights may have; what is neither of these nor integer is refused.
FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
INTEGERS = {"BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I32": torch.int32, "I64": torch.int64}
TABLES = 64 * 2**20  # bytes that a module may take beside its weights: masks, rotary tables, the grid of a scalar code
FACTORIES = {torch.empty, torch.eye, torch.linspace, torch.ones, torch.rand, torch.randn, torch.zeros}

C = TypeVar("C")
M = TypeVar("M", bound=nn.Module)


# Files


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict of a safetensors file; raises InputError that names a damaged one."""
    with _naming_damage(path):
        return without_byte_rows(load_file(path))


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself; raises InputError that names a damaged one."""
    with _naming_damage(path), safe_open(path, "pt") as file:
        return dict(file.metadata() or {})


def read_header(path: Path) -> dict[str, Tensor]:
    """What `read_weights` gives, on the meta device: names, types and shapes, read without the numbers.

    Raises InputError that names a damaged file, or a type of numbers that weights do not have.
    """
    with _naming_damage(path), safe_open(path, "pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        told = {name: (part.get_dtype(), part.get_shape()) for name, part in slices.items()}
    kinds = FLOATS | INTEGERS
    if other := [f"{name} ({kind})" for name, (kind, _) in told.items() if kind not in kinds]:
        raise InputError(f"{path}: expected numbers of type {', '.join(kinds)}, got {', '.join(other[:5])}")
    with _naming_damage(path):
        return without_byte_rows(
            {name: torch.empty(shape, dtype=kinds[kind], device="meta") for name, (kind, shape) in told.items()}
        )


def read_settings(path: Path) -> Any:
    """What a JSON file holds; raises InputError that names a damaged one."""
    with _naming_damage(path):
        return parse_json(path.read_bytes())


@contextmanager
def _naming_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, SafetensorError) as error:
        raise InputError(f"{path}: the file is damaged ({error}); write or download it again") from None


def write_weights(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a state dict as a safetensors file, whole or not at all, as readable as any other file.

    metadata: kept in the file; by default {"format": "pt"}, without which transformers refuses it. Raises OSError
    where it cannot be written.
    """
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    kept = {"format": "pt"} if metadata is None else dict(metadata)

    def write(place: Path) -> None:
        try:
            save_file(tensors, place, metadata=kept)  # to a file: bytes would be a copy
        except SafetensorError as error:
            raise OSError(errno.EIO, reason(error), str(path)) from None

    replace_file(path, write)


def write_settings(path: Path, settings: Any) -> None:
    """Write plain data as JSON for people to read, whole or not at all; raises OSError where it cannot be written."""
    text = json.dumps(settings, indent=2) + "\n"
    write_text_atomically(path, text)


# Hashes


def tensor_sha256(tensor: Tensor) -> str:
    """SHA-256 of dtype, shape and bytes of a tensor, in hexadecimal digits."""
    return tensors_sha256({"": tensor})


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 of a module's state dict: names in order, dtypes, shapes and bytes; independent of device and file."""
    return tensors_sha256(module.state_dict())


def tensors_sha256(tensors: Mapping[str, Tensor], more: str = "") -> str:
    """SHA-256 of tensors by name, and of a text."""
    digest = hashlib.sha256(more.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(dtype=torch.uint8).numpy().data)
    return digest.hexdigest()


# Modules


def find_folder(
    what: str,
    source: str | Path,
    bundled: str,
    *,
    more_files: tuple[str, ...] = (),
    subfolder: str = "",
    **options: Any,
) -> Path:
    """The folder with a saved module's config.json and model.safetensors.

    what: its name in errors. source: "bundled" for the package's own folder `bundled`, one of PAIRS for the tokenizer
    or the generator of that pair, a folder, or the id of a hub repository. more_files: what else to download of a
    repository. subfolder: of a folder or a repository. options: of `huggingface_hub.snapshot_download` (revision,
    cache_dir, token, ...). Raises InputError where there is no such folder or repository, or where one of the two files
    is not in it.
    """
    if unknown := sorted(options.keys() - HUB_OPTIONS):
        raise InputError(f"{what} {str(source)!r}: there is no option {', '.join(unknown)}; see from_pretrained")
    if str(source) == "bundled":
        folder = BUNDLED / bundled
    elif str(source) in PAIRS and bundled in ("tokenizer", "car"):
        folder = PAIRS[str(source)] / ("tokenizer" if bundled == "tokenizer" else "")
    elif Path(source).is_dir():
        folder = Path(source) / subfolder
    else:
        patterns = [str(Path(subfolder, name)) for name in (CONFIG, WEIGHTS, *more_files)]
        folder = _download(what, str(source), patterns, options) / subfolder
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            expected = _of_a_run(folder) or f"the folder holds no {name}; expected those of a saved {what}"
            raise InputError(f"{what} {folder}: {expected}")
    return folder


def _folders(above: Path) -> list[str]:
    return sorted(path.name for path in above.iterdir() if path.is_dir())


def _of_a_run(folder: Path) -> str | None:
    """Where a folder is that of a training, or would be its final/: what to do to have the model."""
    run = folder.parent if folder.name == "final" else folder
    if not ((run / "config.yaml").is_file() and (run / "checkpoints").is_dir()):
        return None
    if (run / "final" / CONFIG).is_file():
        return f"it is the folder of a run; the model is in {run / 'final'}"
    saved = sorted(path.name for path in (run / "checkpoints").glob("step-????????"))
    reached = f"checkpoint of step {saved[-1].removeprefix('step-').lstrip('0')}" if saved else "no checkpoint yet"
    return f"this run has not ended ({reached}): go on with train.resume=true"


def _download(what: str, source: str, patterns: list[str], options: dict[str, Any]) -> Path:
    expected = f"{what} {source!r}: neither 'bundled', a folder, nor a hub repository"
    above, _, name = source.rpartition("/")
    here = bool(above) and Path(above).is_dir()
    # A folder's name: the hub's answer would mislead.
    if here or source.startswith(("/", ".", "~")) or source.count("/") > 1:
        if unfinished := _of_a_run(Path(source)):
            raise InputError(f"{what} {source!r}: {unfinished}")
        near = did_you_mean(name, _folders(Path(above)), f"{above}/") if here else ""
        raise InputError(f"{expected}: there is no such folder{near}")
    try:
        return Path(snapshot_download(source, allow_patterns=patterns, **options))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(f"{expected} that can be read ({error})") from None


def load_module(
    build: Callable[[C], M], config: type[C], folder: Path, elsewhere: tuple[str, ...] = (), precision_of: str = ""
) -> M:
    """`build(config)` with the settings and weights of a folder, in evaluation mode.

    elsewhere: beginnings of the names of tensors that are kept in other files. precision_of: the tensor of the file in
    whose precision the module is; without one it is in that of `build`. Raises InputError that names a file that is
    damaged, or where the two do not fit together; what the settings ask for is not allocated then.
    """
    path = folder / WEIGHTS
    settings = from_dict(config, read_settings(folder / CONFIG), where=str(folder / CONFIG))
    header = read_header(path)
    with _as_large_as(header, path), made_in_float32():
        planned = build(settings)
    _check_fits(header, own_state(planned, elsewhere), path)
    _check_tables(planned, header, path)
    with undrawn(), made_in_float32():
        module = build(settings)
    if precision_of in header:
        module.to(header[precision_of].dtype)
    _fill(module, read_weights(path), path)
    return module.eval()


@contextmanager
def _as_large_as(header: Mapping[str, Tensor], path: Path) -> Iterator[None]:
    """Within it modules take no memory; InputError as soon as there are more parameters than a file has tensors."""
    tensors, numbers = len(header), sum(tensor.numel() for tensor in header.values())
    thread = threading.get_ident()

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal tensors, numbers
        if parameter is not None and threading.get_ident() == thread:
            tensors, numbers = tensors - 1, numbers - parameter.numel()
        if min(tensors, numbers) < 0:  # at once: 10**9 layers take hours even without memory
            raise InputError(f"{path} does not fit its {CONFIG}: it asks for more weights than there are")

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"), undrawn(), _Unallocated():
            yield
    except (RuntimeError, TypeError, OverflowError, MemoryError) as error:
        raise InputError(f"{path} does not fit its {CONFIG}: {reason(error)}") from None
    finally:
        hook.remove()


class _Unallocated(TorchFunctionMode):
    # The meta device is the default alone: tables that are drawn by a generator of the CPU would be drawn there.
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("generator") is not None and "device" in kwargs:
            kwargs = kwargs | {"generator": None, "device": "meta"}
        return func(*args, **kwargs)


def _check_tables(module: nn.Module, header: Mapping[str, Tensor], path: Path) -> None:
    kept = module.state_dict().keys()
    size = sum(table.nbytes for name, table in module.named_buffers() if name not in kept)
    if size > TABLES + sum(tensor.nbytes for tensor in header.values()):
        raise InputError(f"{path} does not fit its {CONFIG}: it asks for tables of {size / 1e9:.3g} GB beside them")


def save_module(module: nn.Module, config: Any, folder: Path) -> None:
    """Write what `load_module` reads."""
    write_weights(folder / WEIGHTS, module.state_dict())
    write_settings(folder / CONFIG, to_dict(config))


class SavedNetwork(nn.Module):
    """A network that is saved and loaded by itself.

    what: its name in errors. bundled: its folder in the package. settings: the class of its `config`.
    """

    what: ClassVar[str]
    bundled: ClassVar[str]
    settings: ClassVar[type]
    config: Any

    def save(self, folder: Path) -> None:
        """Write config.json, model.safetensors and README.md."""
        name = type(self).__name__
        card = (
            f"# {name}\n\nTrained with `channelvq`; `from {type(self).__module__} import {name}`, "
            f"`{name}.load(folder)`.\nWhat it is made of: config.json.\n"
        )
        write_text_atomically(folder / "README.md", card)
        save_module(self, self.config, folder)

    @classmethod
    def load(cls, source: str | Path) -> Self:
        """From "bundled", a folder that `save` wrote or a hub repository, to be used as it is: no gradients of its own.

        Raises InputError where there is none, or its files are damaged or do not fit together.
        """
        folder = find_folder(cls.what, source, cls.bundled)
        return load_module(cls, cls.settings, folder).requires_grad_(False)


@contextmanager
def undrawn() -> Iterator[None]:
    """Within it new layers hold whatever is in their memory, for a file to fill; torch's generator stays as it is."""
    with torch.random.fork_rng(devices=[]), _Undrawn():
        yield


class _Undrawn(TorchFunctionMode):
    # Not the meta device: what is computed and not saved, such as rotary tables, has to be there.
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Not the methods of tensors that have these names: trunc_normal_ draws until all is within its bounds.
        if isfunction(func) and func.__name__ in DRAWS:
            return args[0] if args else kwargs["tensor"]  # as it is; torch.nn.init passes it by its name
        return func(*args, **(kwargs or {}))


def made_in_float32() -> AbstractContextManager[object]:
    """Within it new tensors are float32 where nothing else is asked for, whatever torch's default is in the process."""
    return nullcontext() if torch.get_default_dtype() == torch.float32 else _Float32()


class _Float32(TorchFunctionMode):
    # Not torch.set_default_dtype, which other threads would see.
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in FACTORIES and kwargs.get("dtype") is None:
            kwargs["dtype"] = torch.float32
        return func(*args, **kwargs)


def _fill(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load a state dict that fits; InputError unless all numbers are finite."""
    if bad := [name for name, tensor in state.items() if not bool(tensor.isfinite().all())]:
        raise InputError(
            f"{path}: {len(bad)} tensor(s) hold NaN or infinity, such as {bad[0]}: the training diverged, or the file "
            "is damaged; use an earlier state"
        )
    module.load_state_dict(state, strict=False)


def _check_fits(state: Mapping[str, Tensor], own: Mapping[str, Tensor], path: Path) -> None:
    if wrong := misfits(state, own):
        raise InputError(f"{path} does not fit its {CONFIG}: {wrong[:5]}")
    for name, tensor in state.items():
        if tensor.is_floating_point() != own[name].is_floating_point():
            raise InputError(f"{path} does not fit its {CONFIG}: {name} is {tensor.dtype}, expected {own[name].dtype}")


def own_state(module: nn.Module, elsewhere: tuple[str, ...]) -> dict[str, Tensor]:
    """The state dict without the names that begin as `elsewhere` says."""
    return {name: tensor for name, tensor in module.state_dict().items() if not name.startswith(elsewhere)}


def misfits(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that only one of two state dicts has, or that have another shape, in order."""
    shapes = [{name: tuple(tensor.shape) for name, tensor in tensors.items()} for tensors in (state, own)]
    return sorted({name for name, _ in shapes[0].items() ^ shapes[1].items()})
