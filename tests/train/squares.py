"""Pictures that a generator learns within a few steps, and a tokenizer for them."""

from pathlib import Path

import torch

from channelvq.data.source import Sample
from channelvq.nn.conv import ConvConfig
from channelvq.quantize.codebook import PlainConfig
from channelvq.tokenizer import CVQConfig, CVQTokenizer

COLOURS = {"red": (230, 20, 20), "green": (20, 200, 20), "blue": (30, 30, 240), "grey": (128, 128, 128)}


class Squares:
    """A square of one of four colours, left or right."""

    def __len__(self) -> int:
        return 40

    def sample(self, index: int, generator: torch.Generator) -> Sample:
        name = list(COLOURS)[index % 4]
        side = "left" if index % 8 < 4 else "right"
        image = torch.full((3, 16, 16), 255, dtype=torch.uint8)
        left = 1 if side == "left" else 9
        image[:, 3:12, left : left + 6] = torch.tensor(COLOURS[name], dtype=torch.uint8)[:, None, None]
        return Sample(image, f"a {name} square on the {side}", str(index))


def tokenizer_of_squares(folder: Path) -> Path:
    """Saved to the folder: 8 tokens of 32 codes, for images of 16 px."""
    torch.manual_seed(0)
    network = ConvConfig(base_channels=8, multipliers=(1, 1), num_blocks=1, attention=False, stem=2)
    config = CVQConfig(image_size=16, latent_channels=8, network=network, quantizer=PlainConfig(codebook_size=32))
    tokenizer = CVQTokenizer(config).eval()
    images = torch.stack([Squares().sample(i, torch.Generator()).image for i in range(8)]).float() / 127.5 - 1
    tokenizer.quantizer.start_from(tokenizer.encoder(images).detach(), torch.Generator().manual_seed(0))
    tokenizer.save_pretrained(folder)
    return folder
