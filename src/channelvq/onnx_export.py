"""A tokenizer as two ONNX files, for programs without torch.

    encoder.onnx   images (B, 3, S, S) float32 in [-1, 1]      -> ids (B, K) int64
    decoder.onnx   ids (B, K) int64, num_tokens () int64       -> images (B, 3, S, S) float32 in [-1, 1]

The decoder reads the first `num_tokens` of the ids; what stands after them has no effect. Its matrices may be stored as
a byte a number (byte_rows.py), which DequantizeLinear makes float32 again; what is computed with is float32. Nearest
codewords are taken in float64, so that nothing but the networks' float32 rounding can tell the ids from those of
`CVQTokenizer.tokenize`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from channelvq.byte_rows import SCALE, to_byte_rows
from channelvq.config import to_dict
from channelvq.devices import ExportedWeights
from channelvq.errors import InputError
from channelvq.evaluate.metrics import psnr
from channelvq.files import filled_folder
from channelvq.images.tensors import to_uint8
from channelvq.nn.modes import evaluating
from channelvq.pretrained import write_settings
from channelvq.quantize.axis import Axis, from_vectors, to_vectors
from channelvq.quantize.base import Quantizer
from channelvq.quantize.residual import ResidualSimVQCodebook
from channelvq.quantize.tokenwise import TokenwiseSimVQCodebook
from channelvq.tokenizer import CVQTokenizer

LAYOUT_FILE = "channelvq-onnx.json"
ENCODER, DECODER = "encoder.onnx", "decoder.onnx"
OPSET = 18
OLDEST_TORCH = "2.13"
NEAREST = ("plain", "ema", "simvq", "lc", "ibq")  # kinds whose token is the nearest row of `codes()`
PROBES = 4
LEAST_NUMBERS = 4096  # of a matrix that is stored as bytes: of smaller ones there is little to save
LEAST_PSNR = 50.0  # of the pictures by int8, beside those by float32: at 30 dB it is 0.04 dB less


@dataclass(frozen=True)
class OnnxLayout:
    """What a program has to know of the two files: LAYOUT_FILE in their folder. check: see `OnnxCheck`."""

    image_size: int
    num_tokens: int
    codebook_size: int
    encoder: str
    decoder: str
    opset: int
    weights: ExportedWeights
    check: dict[str, int]


@dataclass(frozen=True)
class OnnxCheck:
    """The files beside the tokenizer on probe images: ids compared, how many differ, and the largest difference of a
    pixel, in levels of 0..255, from the same ids.
    """

    ids: int
    different_ids: int
    largest_difference: int


def export_onnx(tokenizer: CVQTokenizer, folder: str | Path, weights: ExportedWeights = "float32") -> OnnxCheck:
    """Write the tokenizer as ONNX, for batches of any size, and run the files on probe images beside it.

    folder: gets ENCODER, DECODER and LAYOUT_FILE. weights: how the decoder's large matrices are stored; the encoder's
    are always float32, so that ids are the same. Raises InputError for a kind of quantizer that has no graph here, for
    weights of the tokenizer that are not float32, without the extra `onnx`, and where the files do not do what the
    tokenizer does: more than one id in a hundred differs, or a pixel by more than one level (int8: the pictures are
    less than LEAST_PSNR alike).
    """
    check_extra()
    config = tokenizer.config
    if tokenizer.dtype != torch.float32:
        raise InputError(f"export: the weights are {tokenizer.dtype}, expected float32; convert with .float()")
    if tokenizer.device.type != "cpu":
        tokenizer = deepcopy(tokenizer).to("cpu")
    lookup = _lookup(tokenizer)
    images = probe_images(config.image_size)
    ids = torch.zeros(2, config.num_tokens, dtype=torch.int64)
    with evaluating(tokenizer), torch.no_grad(), filled_folder(Path(folder)) as new:
        encoder = _EncoderGraph(tokenizer.encoder, lookup, tokenizer)
        decoder = _DecoderGraph(tokenizer)
        _write(encoder, (images[:2],), new / ENCODER, ("images",), "ids")
        _write(decoder, (ids, torch.tensor(1)), new / DECODER, ("ids", "num_tokens"), "images")
        if weights == "int8":
            store_as_bytes(new / DECODER)
        check = _checked(tokenizer, new, images, weights)
        layout = OnnxLayout(
            config.image_size, config.num_tokens, tokenizer.codebook_size, ENCODER, DECODER, OPSET, weights,
            asdict(check),
        )  # fmt: skip
        write_settings(new / LAYOUT_FILE, asdict(layout) | {"tokenizer": to_dict(config)})
    return check


def probe_images(size: int) -> Float[Tensor, "b 3 S S"]:
    """Soft random pictures: the same ones for a size."""
    noise = torch.rand(PROBES, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    return nn.functional.interpolate(noise, size=(size, size), mode="bicubic").clamp(0, 1) * 2 - 1


def check_extra() -> None:
    """InputError where a package of the extra is missing, or torch is older than the exporter has to be."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f"export to ONNX needs the package {error.name}: pip install 'channelvq[onnx]'") from None
    if torch.__version__ < OLDEST_TORCH:
        raise InputError(
            f"export to ONNX needs torch {OLDEST_TORCH} or newer, this is {torch.__version__}: the exporter of earlier "
            "ones writes graphs that give other ids"
        )


def _write(module: nn.Module, inputs: tuple[Tensor, ...], path: Path, names: tuple[str, ...], output: str) -> None:
    batch = torch.export.Dim.DYNAMIC
    shapes = tuple({0: batch} if given.ndim else None for given in inputs)
    with _quietly():
        program = torch.onnx.export(
            module, inputs, dynamo=True, opset_version=OPSET, input_names=list(names), output_names=[output],
            dynamic_shapes=shapes, external_data=False, verbose=False, optimize=False,
        )  # fmt: skip
        assert program is not None
        # Where in whose Python files each node comes from: it would leave this machine with the file.
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()
        program.save(path, external_data=False)


@contextmanager
def _quietly() -> Iterator[None]:
    """Torch's exporter warns of its own insides, which nobody here can mend."""
    import logging
    import warnings

    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def store_as_bytes(path: Path) -> None:
    """The large matrices of a file as bytes, each with a node DequantizeLinear that gives it back by its old name."""
    import onnx
    from onnx import helper, numpy_helper

    model = onnx.load(path)
    graph, nodes = model.graph, []
    for given in list(graph.initializer):
        matrix = torch.from_numpy(numpy_helper.to_array(given).copy())
        # Not the stack of all tokens' maps, (K, D, r): a scale for each token is not fine enough for these.
        if matrix.dtype != torch.float32 or matrix.ndim not in (2, 4) or matrix.numel() < LEAST_NUMBERS:
            continue
        rows, name = f"{given.name}.rows", given.name
        for stored, values in zip((rows, name + SCALE), to_byte_rows(matrix), strict=True):
            graph.initializer.append(numpy_helper.from_array(values.numpy(), stored))
        graph.initializer.remove(given)
        nodes.append(helper.make_node("DequantizeLinear", [rows, name + SCALE], [name], axis=0))
    nodes += graph.node
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, path)


def _checked(tokenizer: CVQTokenizer, folder: Path, images: Tensor, weights: ExportedWeights) -> OnnxCheck:
    encoder, decoder = (_session(folder / name) for name in (ENCODER, DECODER))
    ids = tokenizer.tokenize(images)
    theirs = torch.from_numpy(encoder.run(None, {"images": images.numpy()})[0])
    largest, alike = 0, []
    for count in {1, tokenizer.num_tokens // 2 or 1, tokenizer.num_tokens}:
        ours = to_uint8(tokenizer.detokenize(ids[:, :count], output="tensor"))
        given = {"ids": ids.numpy(), "num_tokens": torch.tensor(count).numpy()}
        pictures = to_uint8(torch.from_numpy(decoder.run(None, given)[0]))
        largest = max(largest, int((ours.int() - pictures.int()).abs().max()))
        alike.append(float(psnr(pictures, ours).mean()))
    check = OnnxCheck(ids.numel(), int((theirs != ids).sum()), largest)
    same = largest <= 1 if weights == "float32" else min(alike) >= LEAST_PSNR
    if check.different_ids > check.ids / 100 or not same:
        raise InputError(
            f"export: the ONNX files differ from the tokenizer on probe images ({check.different_ids} of {check.ids} "
            f"ids, pixels by up to {largest} levels, PSNR {min(alike):.1f} dB); nothing was written"
            + (" (weights=int8; float32 may do)" if weights == "int8" else "")
        )
    return check


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class _EncoderGraph(nn.Module):
    """Images -> ids."""

    def __init__(self, encoder: nn.Module, lookup: nn.Module, tokenizer: CVQTokenizer) -> None:
        super().__init__()
        self.encoder, self.lookup = encoder, lookup
        self.axis: Axis = tokenizer.config.axis

    def forward(self, images: Float[Tensor, "B 3 S S"]) -> Int64[Tensor, "B K"]:
        return self.lookup(to_vectors(self.encoder(images), self.axis))


class _DecoderGraph(nn.Module):
    """Ids and how many of them count -> images in [-1, 1]."""

    def __init__(self, tokenizer: CVQTokenizer) -> None:
        super().__init__()
        quantizer = cast(Quantizer, tokenizer.quantizer.quantizer)
        self.decoder, self.side = tokenizer.decoder, tokenizer.config.latent_size
        self.axis: Axis = tokenizer.config.axis
        self.num_tokens = tokenizer.num_tokens
        self.maps = quantizer.weight.detach() if isinstance(quantizer, TokenwiseSimVQCodebook) else None
        self.register_buffer("table", quantizer.codes().detach().clone())

    def forward(self, ids: Int64[Tensor, "B K"], num_tokens: Int64[Tensor, ""]) -> Float[Tensor, "B 3 S S"]:
        codes = nn.functional.embedding(ids, cast(Tensor, self.table))
        if self.maps is not None:
            codes = torch.matmul(self.maps, codes.unsqueeze(3)).squeeze(3)
        kept = torch.arange(self.num_tokens) < num_tokens
        codes = torch.where(kept[:, None], codes, torch.zeros(()))
        return self.decoder(from_vectors(codes, self.axis, (self.side, self.side))).clamp(-1.0, 1.0)


def _lookup(tokenizer: CVQTokenizer) -> nn.Module:
    quantizer, kind = cast(Any, tokenizer.quantizer.quantizer), tokenizer.config.quantizer.kind
    if isinstance(quantizer, ResidualSimVQCodebook):
        return _ResidualLookup(quantizer)
    if isinstance(quantizer, TokenwiseSimVQCodebook):
        return _MappedLookup(quantizer)
    if kind in NEAREST:
        return _NearestLookup(quantizer)
    known = ", ".join((*NEAREST, "simvq-tokenwise", "simvq-residual"))
    raise InputError(f"export: quantizer kind {kind!r} has no ONNX graph; those that have one are {known}")


class _NearestLookup(nn.Module):
    """argmin_n |e_n|^2 / 2 - z . e_n, the lowest index of equal ones."""

    half_norms: Tensor

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        table = quantizer.codes().detach().double()
        self.register_buffer("table", table.T.contiguous())
        self.register_buffer("half_norms", table.square().sum(1) / 2)

    def forward(self, z: Float[Tensor, "B K D"]) -> Int64[Tensor, "B K"]:
        return (self.half_norms - z.double() @ cast(Tensor, self.table)).argmin(2)


class _MappedLookup(nn.Module):
    """argmin_n |W_k c_n|^2 / 2 - (W_k^T z_k) . c_n."""

    half_norms: Tensor

    def __init__(self, quantizer: TokenwiseSimVQCodebook) -> None:
        super().__init__()
        maps, table = quantizer.weight.detach().double(), quantizer.codes().detach().double()
        grams = maps.transpose(1, 2) @ maps
        self.register_buffer("maps", maps)
        self.register_buffer("table", table.T.contiguous())
        self.register_buffer("half_norms", torch.stack([((table @ gram) * table).sum(1) / 2 for gram in grams]))

    def forward(self, z: Float[Tensor, "B K D"]) -> Int64[Tensor, "B K"]:
        projected = torch.matmul(z.double().unsqueeze(2), cast(Tensor, self.maps)).squeeze(2)
        return (self.half_norms - projected @ cast(Tensor, self.table)).argmin(2)


class _ResidualLookup(_MappedLookup):
    """The same, token after token, each for what the ones before left of the numbers that it shares with them."""

    def __init__(self, quantizer: ResidualSimVQCodebook) -> None:
        super().__init__(quantizer)
        self.count = int(quantizer.numbers.max()) + 1
        self.register_buffer("numbers", quantizer.numbers)

    def forward(self, z: Float[Tensor, "B K D"]) -> Int64[Tensor, "B K"]:
        maps, table, half_norms = (cast(Tensor, t) for t in (self.maps, self.table, self.half_norms))
        spent, ids = z.new_zeros(1, self.count).expand(z.shape[0], self.count), []
        for k, numbers in enumerate(cast(Tensor, self.numbers)):
            left = z[:, k] - spent[:, numbers]
            ids.append((half_norms[k] - left.double() @ maps[k] @ table).argmin(1))
            code = (table.T[ids[-1]] @ maps[k].T).float()
            spent = spent.scatter_add(1, numbers.expand_as(code), code)
        return torch.stack(ids, 1)
