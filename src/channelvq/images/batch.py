"""Whatever a user calls images, as one batch."""

from collections.abc import Sequence

import torch
from jaxtyping import Float32
from torch import Tensor

from channelvq.errors import InputError
from channelvq.images.geometry import check_size, resize_crop
from channelvq.images.load import WHITE, Color, ImageInput, load_image
from channelvq.images.tensors import check_one, check_unit, normalize, to_pil, to_tensor

Unit = Float32[Tensor, "3 h w"]


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
    if isinstance(images, Tensor) and images.ndim == 4:
        items = [_resized(item, pair) for item in check_unit(images)]
    elif isinstance(images, Sequence) and not isinstance(images, (str, bytes)):
        items = [_numbered(image, i, pair, background) for i, image in enumerate(images)]
    else:
        items = [_one(images, pair, background)]
    _check_sizes(items)
    return torch.stack([item.to(items[0].device) for item in items])


def _numbered(image: ImageInput, number: int, size: tuple[int, int] | None, background: Color) -> Unit:
    try:
        return _one(image, size, background)
    except InputError as error:
        raise InputError(f"image {number} of the list: {error}") from error


def _one(image: ImageInput, size: tuple[int, int] | None, background: Color) -> Unit:
    if isinstance(image, Tensor):
        return _resized(check_one(image)[0], size)
    loaded = load_image(image, background=background)
    return normalize(to_tensor(loaded if size is None else resize_crop(loaded, size)))


def _resized(x: Unit, size: tuple[int, int] | None) -> Float32[Tensor, "3 H W"]:
    if size is None or tuple(x.shape[1:]) == size:
        return x
    return normalize(to_tensor(resize_crop(to_pil(x[None])[0], size))).to(x.device)


def _check_sizes(items: list[Unit]) -> None:
    if not items:
        raise InputError("no images given: expected at least one")
    sizes = [tuple(item.shape[1:]) for item in items]
    different = [f"image {i}: {size}" for i, size in enumerate(sizes) if size != sizes[0]]
    if different:
        shown = ", ".join(different[:5]) + (", ..." if len(different) > 5 else "")
        raise InputError(
            f"images differ in size (height, width): image 0: {sizes[0]}, {shown}; "
            "give size= to crop and resize them alike"
        )
