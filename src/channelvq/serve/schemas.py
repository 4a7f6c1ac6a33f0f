"""What clients send, in the names of OpenAI's images API, and what they get."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from channelvq.car.settings import SamplingSettings
from channelvq.images.encoded import Format

MOST_PARTIAL = 16
# Far beyond where a picture gets better, far below where numbers overflow.
MOST_GUIDANCE = 100.0


class Strict(BaseModel):
    """An unknown name is an error, not ignored."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class ImageRequest(Strict):
    """`POST /v1/images/generations`; the last lines are ours."""

    prompt: str = Field(description="What to draw; an empty one draws anything.")
    model: str | None = Field(None, description="The name that /v1/models lists.")
    n: int = Field(1, ge=1, description="Images; image i uses seed + i.")
    size: str | None = Field(None, description="WIDTHxHEIGHT; auto: the model's own size.")
    response_format: Literal["b64_json", "url"] | None = Field(None, description="url: a data: URL, nothing is stored.")
    output_format: Format | None = Field(None, description="Default png, which loses nothing.")
    user: str | None = Field(None, max_length=512, description="Not used, and not stored.")
    stream: bool | None = Field(None, description="Server-sent events; with n = 1.")
    partial_images: int | None = Field(None, ge=0, le=MOST_PARTIAL, description="Images on the way, with stream.")
    quality: Literal["auto", "standard", "low", "medium", "high", "hd"] | None = Field(None, description="No effect.")
    background: Literal["auto", "opaque"] | None = Field(None, description="No effect: images are opaque.")
    moderation: Literal["auto", "low"] | None = Field(None, description="No effect: nothing is moderated.")
    seed: int | None = Field(None, ge=0, lt=2**62, strict=True, description="Default: a random one, which data tells.")
    negative_prompt: str = Field("", description="What guidance leads away from.")
    guidance_scale: float = Field(SamplingSettings.guidance_scale, ge=-MOST_GUIDANCE, le=MOST_GUIDANCE)
    temperature: float = Field(SamplingSettings.temperature, ge=0)
    top_k: int = Field(SamplingSettings.top_k, ge=0)
    top_p: float = Field(SamplingSettings.top_p, gt=0, le=1)
    num_tokens: int | None = Field(None, ge=1, description="Of each image; fewer is coarser and quicker.")


class TokenizeRequest(Strict):
    """`POST /v1/tokenize`."""

    images: list[str] = Field(min_length=1, description="Image files as base64, or data: URLs.")
    model: str | None = None


class DetokenizeRequest(Strict):
    """`POST /v1/detokenize`."""

    ids: list[Annotated[list[Annotated[int, Field(strict=True)]], Field(min_length=1)]] = Field(
        min_length=1, description="Sequences of ids; of each, any number from the first on."
    )
    model: str | None = None
    output_format: Format = "png"


class ImageData(BaseModel):
    """One image."""

    b64_json: str | None = None
    url: str | None = None
    seed: int | None = None


class Usage(BaseModel):
    """Tokens of prompts and of images."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: dict[str, int]

    @classmethod
    def of(cls, text: int, image: int) -> "Usage":
        """From the two counts."""
        details = {"text_tokens": text, "image_tokens": 0}
        return cls(input_tokens=text, output_tokens=image, total_tokens=text + image, input_tokens_details=details)


class ImagesResponse(BaseModel):
    """The answer without stream."""

    created: int
    data: list[ImageData]
    output_format: Format
    size: str
    quality: str = "auto"
    background: str = "opaque"
    usage: Usage


class TokenizeResponse(BaseModel):
    """Ids of each image."""

    ids: list[list[int]]
    num_tokens: int
    codebook_size: int


class DetokenizeResponse(BaseModel):
    """Images of the ids."""

    data: list[ImageData]


class Model(BaseModel):
    """What `/v1/models` lists."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "channelvq"


class Models(BaseModel):
    """All of them: one."""

    object: str = "list"
    data: list[Model]


Event = dict[str, Any]
