"""Files <-> tensors: the one home of image handling.

One range rule for the whole library: a float image lies in [-1, 1] (x = u / 127.5 - 1), a uint8 image in [0, 255], and
the way back rounds. Sizes are (height, width).
"""

from channelvq.images.batch import images_to_batch
from channelvq.images.files import (
    IMAGE_SUFFIXES,
    Skipped,
    check_target,
    find_images,
    read_folder,
    read_images,
    save_image,
)
from channelvq.images.geometry import Padding, pad_to_multiple, random_crop, resize_crop, unpad
from channelvq.images.load import WHITE, Color, FirstFrameWarning, ImageInput, image_size, load_image
from channelvq.images.sheets import grid, strip
from channelvq.images.tensors import normalize, to_pil, to_tensor, to_uint8

__all__ = [
    "IMAGE_SUFFIXES",
    "WHITE",
    "Color",
    "FirstFrameWarning",
    "ImageInput",
    "Padding",
    "Skipped",
    "check_target",
    "find_images",
    "grid",
    "image_size",
    "images_to_batch",
    "load_image",
    "normalize",
    "pad_to_multiple",
    "random_crop",
    "read_folder",
    "read_images",
    "resize_crop",
    "save_image",
    "strip",
    "to_pil",
    "to_tensor",
    "to_uint8",
    "unpad",
]
