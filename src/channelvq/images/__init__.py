"""Files <-> tensors: the one home of image handling.

One range rule for the whole library: a float image lies in [-1, 1] (x = u / 127.5 - 1), a uint8 image in [0, 255], and
the way back rounds. Sizes are (height, width).
"""

from channelvq.images.batch import images_to_batch, images_to_list
from channelvq.images.files import IMAGE_SUFFIXES, Skipped, find_images, read_images, save_image
from channelvq.images.geometry import random_crop, resize_crop, working_size
from channelvq.images.load import WHITE, Color, FirstFrameWarning, ImageInput, load_image
from channelvq.images.sheets import grid, strip
from channelvq.images.tensors import normalize, to_pil, to_tensor, to_uint8

__all__ = [
    "IMAGE_SUFFIXES", "WHITE", "Color", "FirstFrameWarning", "ImageInput", "Skipped", "find_images",
    "grid", "images_to_batch", "images_to_list", "load_image", "normalize", "random_crop", "read_images", "resize_crop",
    "save_image", "strip", "to_pil", "to_tensor", "to_uint8", "working_size",
]  # fmt: skip
