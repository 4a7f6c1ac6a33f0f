"""ClipTokenizer: clip <-> channel tokens in time; a picture is a clip of one frame.

clip (B, T, 3, H, W) in [-1, 1]
-> the image tokenizer's encoder, frame by frame     z    (B, T, C, h, w)
-> frame 0: its codebook                             ids  (B, C)      the ids of the picture
-> each further group of g frames, in time: what changes since the decoded maps before it (nn/motion.py), a codebook
   of its own                                        ids  (B, C)      of group 1, 2, ...
-> the maps of the groups, each from its ids and the maps before it
-> the image tokenizer's decoder, frame by frame     clip (B, T, 3, H, W)

ids (B, G, C), G = 1 + ceil((T - 1) / g). What is decoded of a group depends on its ids and on earlier ones alone, and
so do its own ids on no later frame: any [:t, :k] of them decodes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass as data_class
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Any, Literal, overload

import torch
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Bool, Float, Int64
from PIL import Image
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from channelvq.checks import check_whole_number, whole_numbers
from channelvq.config import STRICT
from channelvq.devices import resolve_device, resolve_dtype
from channelvq.errors import InputError
from channelvq.images import WHITE, resize_crop, to_pil
from channelvq.images.clips import MOST_FRAMES, ClipInput, read_clip
from channelvq.images.geometry import resize
from channelvq.nn.modes import evaluating, in_chunks
from channelvq.nn.motion import Motion
from channelvq.pretrained import CARD, find_folder, load_module, save_module
from channelvq.quantize.base import check_keep
from channelvq.quantize.channel_vq import ChannelVQ
from channelvq.tokenizer import CVQConfig, CVQTokenizer


@dataclass(frozen=True, config=STRICT)
class ClipConfig:
    """image: the tokenizer of frames, on the channel axis. group: frames that a further group of tokens stands for.

    frames: of a clip, where it is made from a file, and in training. width, num_blocks, attention: of the networks that
    see what changes (nn/motion.py).
    """

    image: CVQConfig = field(default_factory=CVQConfig)
    group: PositiveInt = 2
    frames: PositiveInt = 9
    width: PositiveInt = 128
    num_blocks: PositiveInt = 2
    attention: bool = True

    def __post_init__(self) -> None:
        if self.image.axis != "channel":
            raise ValueError(f"image.axis {self.image.axis!r}: clips are for tokens of channels; set it to channel")
        if self.image.network.kind == "linear":
            raise ValueError("image.network.kind linear: its maps have no places in the picture; use conv or vit")
        if max(self.frames, self.group) > MOST_FRAMES:
            raise ValueError(f"frames {self.frames}, group {self.group}: at most {MOST_FRAMES}")

    def num_groups(self, frames: int) -> int:
        """G of a clip of so many frames: the first by itself, then groups of which the last may be filled up."""
        return 1 + math.ceil((frames - 1) / self.group)

    def num_frames(self, groups: int) -> int:
        """T of so many groups of tokens."""
        return 1 + (groups - 1) * self.group


@data_class
class CodedClip:
    """maps: (B, T, C, h, w), of whole groups. indices: (B, G, C). losses: means over the groups, by name."""

    maps: Float[Tensor, "B T C h w"]
    indices: Int64[Tensor, "B G C"]
    losses: dict[str, Tensor]


class ClipTokenizer(nn.Module, PyTorchModelHubMixin, library_name="channelvq", model_card_template=CARD):
    """Tokenizer of clips: one token for each channel of the first frame, and of each further group of frames.

    image: the tokenizer of single frames. motion: what changes from group to group. folder: where it was loaded from.
    """

    folder: Path | None = None

    def __init__(self, config: ClipConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ClipConfig()
        self.image = CVQTokenizer(config.image)
        self.motion = Motion(
            config.image.latent_channels, config.group, config.width, config.num_blocks, attention=config.attention
        )
        self.motion_quantizer = ChannelVQ(
            codebook_dim=config.image.codebook_dim, num_tokens=config.image.num_tokens, config=config.image.quantizer
        )

    @property
    def num_tokens(self) -> int:
        """Tokens a group, C."""
        return self.image.num_tokens

    @property
    def codebook_size(self) -> int:
        """Number of codewords, N, of each of the two codebooks: of first frames, and of changes."""
        return self.image.codebook_size

    @property
    def image_size(self) -> int:
        """Side of the frames, in pixels; with a resampler that of the home size."""
        return self.image.image_size

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.image.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.image.dtype

    # Maps

    def code(self, z: Float[Tensor, "B T C h w"], keep: Bool[Tensor, "B G C"] | None = None) -> CodedClip:
        """Maps of frames -> those that are decoded of their tokens, group by group; keep: tokens that stay."""
        first = self.image.quantizer(z[:, 0], None if keep is None else keep[:, 0])
        maps, indices, losses = [first.z_q[:, None].to(z.dtype)], [first.indices], [first.losses]
        for number, group in enumerate(self._groups(z), start=1):
            past = maps[-1][:, -1]
            change = self.motion.encode(group, past)
            coded = self.motion_quantizer(change, None if keep is None else keep[:, number])
            maps.append(self.motion.decode(coded.z_q.to(z.dtype), past))
            indices.append(coded.indices)
            losses.append(coded.losses)
        means = {name: torch.stack([terms[name] for terms in losses]).mean() for name in first.losses}
        return CodedClip(torch.cat(maps, dim=1), torch.stack(indices, dim=1), means)

    def changes(self, z: Float[Tensor, "B T C h w"]) -> Float[Tensor, "n C h w"]:
        """What the codebook of changes is to code: of every group, seen from the maps before it as they are."""
        before = [z[:, 0], *(group[:, -1] for group in self._groups(z))]
        parts = [self.motion.encode(g, past) for g, past in zip(self._groups(z), before, strict=False)]
        if not parts:
            raise InputError("clips of one frame: nothing changes; see data.sources, frames")
        return torch.cat(parts)

    def _groups(self, z: Float[Tensor, "B T C h w"]) -> list[Float[Tensor, "B g C h w"]]:
        """The frames after the first in groups; the last one is filled up with its last frame."""
        missing = self.config.num_frames(self.config.num_groups(z.shape[1])) - z.shape[1]
        filled = torch.cat([z, z[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1)
        return list(filled[:, 1:].split(self.config.group, dim=1)) if filled.shape[1] > 1 else []

    def maps_of(
        self, ids: Int64[Tensor, "B G k"], groups: int, keep: Bool[Tensor, "B G k"] | None = None
    ) -> Float[Tensor, "B T C h w"]:
        """Maps of `groups` groups by the ids of the first of them; tokens that are missing, or not kept, are zero."""
        codes = torch.stack([self._codes(ids[:, g], first=g == 0) for g in range(ids.shape[1])], dim=1)
        if keep is not None:
            codes = codes.masked_fill(~keep[..., None], 0.0)
        whole = codes.new_zeros(len(ids), groups, self.num_tokens, codes.shape[-1])
        whole[:, : ids.shape[1], : ids.shape[2]] = codes
        side = self.config.image.latent_size
        q = whole.unflatten(3, (side, side))
        maps = [q[:, :1]]
        for number in range(1, groups):
            maps.append(self.motion.decode(q[:, number], maps[-1][:, -1]))
        return torch.cat(maps, dim=1)

    def _codes(self, ids: Int64[Tensor, "B k"], *, first: bool) -> Float[Tensor, "B k D"]:
        quantizer = self.image.quantizer if first else self.motion_quantizer
        return quantizer.indices_to_codes(ids).to(self.dtype)

    def forward(
        self, x: Float[Tensor, "B T 3 H W"], keep: Bool[Tensor, "B G C"] | None = None
    ) -> tuple[Float[Tensor, "B T 3 H W"], CodedClip]:
        """Reconstruction and what the quantizers returned, for training. keep: tokens that stay, (B, G, C)."""
        if x.ndim != 5:
            raise InputError(f"forward: expected clips (B, T, 3, H, W), got {tuple(x.shape)}; see data.sources")
        frames, size = x.flatten(0, 1), (x.shape[3], x.shape[4])
        self.image.check_images(frames, "forward")
        if keep is not None:
            tokens = len(x), self.config.num_groups(x.shape[1]) * self.num_tokens, 1
            check_keep(keep.flatten(1), frames.new_empty(tokens))
        coded = self.code(self.image.maps(frames).unflatten(0, x.shape[:2]), keep)
        shown = coded.maps[:, : x.shape[1]].flatten(0, 1)
        return self.image.painted(shown, size).unflatten(0, x.shape[:2]), coded

    # Clips and ids

    @torch.no_grad()
    def tokenize(
        self, clips: Tensor | ClipInput | Sequence[ClipInput], *, frames: int | None = None, exact: bool = True
    ) -> Int64[Tensor, "B G C"]:
        """Clips -> ids in 0..N-1, groups in time.

        clips: a tensor (B, T, 3, H, W), or (T, 3, H, W) for one, uint8 or float in [-1, 1], of any T; or files, of one
        or of several clips: animations that Pillow reads (.webp, .gif, ...), other video with the extra `video`, of
        which `frames` evenly spaced ones are taken (None: `config.frames`). Frames of another size are cropped and
        resized as pictures are, see `CVQTokenizer.tokenize`. exact: ids do not depend on the other clips of the call.
        """
        batch = self._batch(clips, frames)
        z = torch.stack([self.image.latents(clip, exact=exact) for clip in batch])
        with evaluating(self):
            return in_chunks(lambda rows: self.code(rows).indices, z, exact=exact)

    def _batch(self, clips: Any, frames: int | None) -> list[list[Any]]:
        """The frames of each clip, all of as many."""
        if isinstance(clips, Tensor):
            if frames is not None:
                raise InputError(
                    f"tokenize: frames={frames} is for files; a tensor is tokenized with the frames it has"
                )
            batch = clips[None] if clips.ndim == 4 else clips
            if batch.ndim != 5 or batch.shape[2] != 3 or batch.numel() == 0 or batch.shape[1] > MOST_FRAMES:
                raise InputError(
                    f"tokenize: expected clips (B, T, 3, H, W) or one (T, 3, H, W), of at most {MOST_FRAMES} frames, "
                    f"got {tuple(clips.shape)}"
                )
            return [list(clip) for clip in batch]
        listed = [clips] if isinstance(clips, (str, Path, bytes, Image.Image)) else list(clips)
        if not listed:
            raise InputError("tokenize: no clips given, expected at least one")
        count = self.config.frames if frames is None else frames
        return [read_clip(source, count, self._fitted).frames for source in listed]

    def _fitted(self, frame: Image.Image) -> Image.Image:
        """A frame as small as it is worked at, on white where it is clear."""
        here = (frame.height, frame.width)
        home = self.image.resampler is None
        wanted = self.config.image.working_size(here)
        small = frame if here == wanted else (resize_crop if home else resize)(frame, wanted)
        if small.mode == "RGBA":
            small = Image.alpha_composite(Image.new("RGBA", small.size, (*WHITE, 255)), small)
        return small.convert("RGB")

    @overload
    def detokenize(
        self, ids: Tensor, output: Literal["tensor"] = "tensor", *, frames: int | None = None,
        num_tokens: int | None = None, size: int | tuple[int, int] | None = None, exact: bool = True,
    ) -> Tensor: ...  # fmt: skip
    @overload
    def detokenize(
        self, ids: Tensor, output: Literal["pil"], *, frames: int | None = None, num_tokens: int | None = None,
        size: int | tuple[int, int] | None = None, exact: bool = True,
    ) -> list[list[Image.Image]]: ...  # fmt: skip
    @torch.no_grad()
    def detokenize(
        self,
        ids: Int64[Tensor, "B G k"],
        output: Literal["tensor", "pil"] = "tensor",
        *,
        frames: int | None = None,
        num_tokens: int | None = None,
        size: int | tuple[int, int] | None = None,
        exact: bool = True,
    ) -> Float[Tensor, "B T 3 H W"] | list[list[Image.Image]]:
        """Ids of the first groups, of any number of their first tokens -> clips in [-1, 1], or lists of PIL images.

        A single clip (G, k) counts as a batch of one. frames: T; None: those of the groups, 1 + (G - 1) g. With more,
        the clip goes on as its past lets expect, as nested dropout trained it. num_tokens: how many tokens of each
        group after the first are used, where the first frame has more. size: see `CVQTokenizer.detokenize`. Raises
        InputError on an id, a length or a size out of range.
        """
        if output not in ("tensor", "pil"):
            raise InputError(f"detokenize: output is 'tensor' or 'pil', got {output!r}")
        asked = self.image.check_output_size(size, "detokenize")
        ids, working = self.check_ids(ids), self.config.image.working_size(asked)
        frames = self.config.num_frames(ids.shape[1]) if frames is None else frames
        frames = check_whole_number("detokenize: frames", frames, 1, MOST_FRAMES)
        groups = self.config.num_groups(frames)
        decode = partial(self._decoded, frames=frames, groups=groups, num_tokens=self._prefix(num_tokens, ids))
        with evaluating(self):
            maps = in_chunks(decode, ids[:, :groups], exact=exact)
            painted = in_chunks(
                lambda z: self.image.painted(z, working), maps.flatten(0, 1), exact=exact,
                rows=self.image.rows_at_once(working),
            ).clamp(-1.0, 1.0)  # fmt: skip
        if working != asked:
            painted = F.interpolate(painted, asked, mode="bicubic", antialias=True).clamp(-1.0, 1.0)
        clips = painted.unflatten(0, (len(ids), frames))
        return [to_pil(clip) for clip in clips] if output == "pil" else clips

    def _prefix(self, num_tokens: int | None, ids: Int64[Tensor, "B G k"]) -> int:
        if num_tokens is None:
            return ids.shape[2]
        return check_whole_number("detokenize: num_tokens, of the groups after the first", num_tokens, 0, ids.shape[2])

    def _decoded(self, ids: Int64[Tensor, "B G k"], frames: int, groups: int, num_tokens: int) -> Tensor:
        keep = torch.ones_like(ids, dtype=torch.bool)
        keep[:, 1:, num_tokens:] = False
        return self.maps_of(ids, groups, keep)[:, :frames]

    def check_ids(self, ids: Any) -> Int64[Tensor, "B G k"]:
        """Ids as int64 (B, G, k) on the device; InputError that names what is out of range."""
        try:
            ids = torch.as_tensor(ids, device=self.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"ids: expected whole numbers (B, G, k) ({error})") from None
        ids = whole_numbers("ids", ids)
        ids = ids[None] if ids.ndim == 2 else ids
        most = self.config.num_groups(MOST_FRAMES)
        if ids.ndim != 3 or 0 in ids.shape or ids.shape[1] > most or ids.shape[2] > self.num_tokens:
            raise InputError(
                f"ids: expected (B, G, k), k in 1..{self.num_tokens} and G in 1..{most}, got {tuple(ids.shape)}; the "
                "ids of a picture are those of a clip of one group, ids[:, None]"
            )
        self.image.check_ids(ids.flatten(0, 1))
        return ids

    # Files

    def _save_pretrained(self, save_directory: Path) -> None:
        save_module(self, self.config, save_directory)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype | None = None,
        **options: Any,
    ) -> "ClipTokenizer":
        """Load a tokenizer of clips from a folder, or by the id of a hub repository; see `CVQTokenizer`."""
        place, kind = resolve_device(device), resolve_dtype(dtype)
        folder = find_folder("clip tokenizer", pretrained_model_name_or_path, "clip-tokenizer", **options)
        tokenizer = load_module(cls, ClipConfig, folder).to(place, kind)
        tokenizer.folder = folder
        return tokenizer
