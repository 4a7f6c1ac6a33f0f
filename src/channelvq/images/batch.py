"""Whatever a user calls images, as one batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float32
from PIL import Image
from torch import Tensor

from channelvq.errors import InputError
from channelvq.images.geometry import check_size, resize, resize_crop
from channelvq.images.load import WHITE, Color, ImageInput, load_image
from channelvq.images.tensors import check_one, check_unit, normalize, to_pil, to_tensor

Unit = Float32[Tensor, "3 h w"]
Size = tuple[int, int]  # height, width


@dataclass(frozen=True)
class _Fit:
    """Which size an image of a size is to have, and how it gets it."""

    wanted: Callable[[Size], Size]
    change: Callable[[Image.Image, Size], Image.Image]


def images_to_batch(
    images: ImageInput | Sequence[ImageInput], *, size: int | tuple[int, int] | None = None, background: Color = WHITE
) -> Float32[Tensor, "b 3 h w"]:
    """One image, a list of images or a batch (B, 3, H, W) as one float32 batch in [-1, 1].

    With `size` (side, or (height, width)) every image of another size goes through `resize_crop`; without it all must
    be equally large. Float tensors keep their values (no rounding to 8 bit) unless they are resized, and tensors stay
    on their device (a list: on that of its first image).
    Raises InputError for an image that `load_image` refuses (with its number in the list), for float tensors outside
    [-1, 1] by more than 1e-3 or not finite, for an empty list, and for sizes that differ.
    """
    pair = None if size is None else check_size(size)
    items = _items(images, None if pair is None else _Fit(lambda _: pair, resize_crop), background)
    _check_sizes(items)
    return torch.stack([item.to(items[0].device) for item in items])


def images_to_list(
    images: ImageInput | Sequence[ImageInput], wanted: int | Callable[[Size], Size], *, background: Color = WHITE
) -> list[Float32[Tensor, "3 _ _"]]:
    """As `images_to_batch`, each image whole, in a size of its own: `wanted` of its (height, width), by `resize`.

    wanted: or a side, as for `images_to_batch`.
    One is read at a time, so that only what they become is held, not what large pictures were.
    """
    fit = _Fit(lambda _: (wanted, wanted), resize_crop) if isinstance(wanted, int) else _Fit(wanted, resize)
    items = _items(images, fit, background)
    _check_any(items)
    return items


def _items(images: ImageInput | Sequence[ImageInput], fit: _Fit | None, background: Color) -> list[Unit]:
    if isinstance(images, Tensor) and images.ndim == 4:
        return [_fitted(item, fit) for item in check_unit(images)]
    if isinstance(images, Sequence) and not isinstance(images, (str, bytes)):
        return [_numbered(image, i, fit, background) for i, image in enumerate(images)]
    return [_one(images, fit, background)]


def _numbered(image: ImageInput, number: int, fit: _Fit | None, background: Color) -> Unit:
    try:
        return _one(image, fit, background)
    except InputError as error:
        raise InputError(f"image {number} of the list: {error}") from error


def _one(image: ImageInput, fit: _Fit | None, background: Color) -> Unit:
    if isinstance(image, Tensor):
        return _fitted(check_one(image)[0], fit)
    loaded = load_image(image, background=background)
    if fit is not None:
        loaded = fit.change(loaded, fit.wanted((loaded.height, loaded.width)))
    return normalize(to_tensor(loaded))


def _fitted(x: Unit, fit: _Fit | None) -> Float32[Tensor, "3 H W"]:
    here = (x.shape[1], x.shape[2])
    if fit is None or here == (size := fit.wanted(here)):
        return x
    return normalize(to_tensor(fit.change(to_pil(x[None])[0], size))).to(x.device)


def _check_any(items: list[Unit]) -> None:
    if not items:
        raise InputError("no images given: expected at least one")


def _check_sizes(items: list[Unit]) -> None:
    _check_any(items)
    sizes = [tuple(item.shape[1:]) for item in items]
    different = [f"image {i}: {size}" for i, size in enumerate(sizes) if size != sizes[0]]
    if different:
        shown = ", ".join(different[:5]) + (", ..." if len(different) > 5 else "")
        raise InputError(
            f"images differ in size (height, width): image 0: {sizes[0]}, {shown}; "
            "give size= to crop and resize them alike"
        )
