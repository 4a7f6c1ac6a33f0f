"""What decides a tokenizer, and the sizes that follow from it."""

from collections.abc import Callable
from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import PositiveInt, SerializerFunctionWrapHandler, model_serializer
from pydantic.dataclasses import dataclass

from channelvq.config import STRICT, ImageSize, when_given
from channelvq.images import working_size
from channelvq.nn.conv import ConvConfig
from channelvq.nn.networks import AnyNetworkConfig, takes_any_size
from channelvq.quantize.axis import Axis
from channelvq.quantize.codebook import PlainConfig
from channelvq.quantize.registry import AnyQuantizerConfig

Size = tuple[int, int]  # height, width
LARGEST = 16  # times the pixels of the home size: the most that pictures are worked at, where no setting says another

if TYPE_CHECKING:  # imported where there is one
    from channelvq.nn.resampler import ResamplerConfig
else:
    ResamplerConfig = Any


@dataclass(frozen=True, config=STRICT)
class CVQConfig:
    """image_size: side of the square images in pixels. latent_channels: C, the number of tokens on the channel axis.

    axis: what a token stands for. network: encoder and decoder. quantizer: the codebook, and how it learns.
    resampler: takes images of any size and shape to the codebook's maps and back (nn/resampler.py); image_size is then
    the home size, whose maps they are. null: all images are squares of image_size.
    """

    image_size: ImageSize = 64
    latent_channels: PositiveInt = 64
    axis: Axis = "channel"
    network: AnyNetworkConfig = field(default_factory=ConvConfig)
    quantizer: AnyQuantizerConfig = field(default_factory=PlainConfig)
    resampler: Annotated[ResamplerConfig | None, when_given("channelvq.nn.resampler:ResamplerConfig")] = None

    @model_serializer(mode="wrap")
    def _without_absent(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # The files of a tokenizer without one are what they were before there was such a setting.
        return {key: value for key, value in write(self).items() if key != "resampler" or value is not None}

    def __post_init__(self) -> None:
        if self.image_size % self.network.downsampling:
            raise ValueError(
                f"image_size {self.image_size} must be a multiple of the network's downsampling "
                f"{self.network.downsampling} ({self.network.downsampling_reason})"
            )
        if self.resampler is not None and not takes_any_size(self.network):
            raise ValueError(
                f"resampler: a network of kind {self.network.kind} takes images of one size only; use kind conv"
            )
        if self.max_pixels < self.image_size**2:
            raise ValueError(
                f"resampler.max_pixels {self.max_pixels} must be at least those of image_size, {self.image_size**2}"
            )

    @property
    def max_pixels(self) -> int:
        """The most pixels that an image is worked at."""
        if self.resampler is None:
            return self.image_size**2
        return self.resampler.max_pixels or LARGEST * self.image_size**2

    def working_size(self, size: Size) -> Size:
        """The (height, width) that a picture of `size` is worked at: multiples of f, of at most `max_pixels`."""
        if self.resampler is None:
            return self.image_size, self.image_size
        return working_size(size, self.network.downsampling, self.max_pixels)

    @property
    def read_at(self) -> int | Callable[[Size], Size]:
        """How pictures are read, for `images_to_list` and `read_images`: cropped to a side, or whole at a size."""
        return self.image_size if self.resampler is None else self.working_size

    def maps_size(self, size: Size) -> Size:
        """(h, w) of the feature maps of images of a working size."""
        return size[0] // self.network.downsampling, size[1] // self.network.downsampling

    @property
    def latent_size(self) -> int:
        """Side of the feature maps, h = w."""
        return self.image_size // self.network.downsampling

    @property
    def num_tokens(self) -> int:
        """Tokens an image: C, or h*w on the patch axis."""
        return self.latent_channels if self.axis == "channel" else self.latent_size**2

    @property
    def codebook_dim(self) -> int:
        """Numbers in a codeword: h*w, or C on the patch axis."""
        return self.latent_size**2 if self.axis == "channel" else self.latent_channels
