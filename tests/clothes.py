"""A copy of Fashion-MNIST in its own format, of other pictures."""

import gzip
from pathlib import Path

import numpy as np


def write_fashion(folder: Path, **official: np.ndarray) -> None:
    """Write pictures (n, 28, 28) uint8 of an official split, "train" or "t10k"; number i is of class i % 10."""
    for name, images in official.items():
        labels = (np.arange(len(images)) % 10).astype(np.uint8)
        for kind, numbers in (("images-idx3", images), ("labels-idx1", labels)):
            # idx: type and number of dimensions, then each size, big-endian
            sizes = (0x800 + numbers.ndim, *numbers.shape)
            header = b"".join(size.to_bytes(4, "big") for size in sizes)
            (folder / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + numbers.tobytes()))
