"""The page's pictures as HTML: nothing is fetched, every picture is inside and has a text for who cannot see it."""

import base64
from collections.abc import Sequence
from html import escape

from jaxtyping import Float64
from PIL import Image
from torch import Tensor

from channelvq.app.codebook import Tile
from channelvq.app.drawing import Step
from channelvq.app.tokens import LOUDER, Change, Tokenized, Version
from channelvq.app.words import note
from channelvq.images.encoded import data_url, to_base64


def picture(image: Image.Image, alt: str, kind: str = "") -> str:
    """An image element."""
    return f'<img class="{kind}" src="{data_url(to_base64(image, "png"), "png")}" alt="{escape(alt)}">'


def card(image: Image.Image, title: str, lines: Sequence[str], alt: str, kind: str = "") -> str:
    """A picture above its title and what is said of it."""
    said = "".join(f"<span>{escape(line)}</span>" for line in lines)
    return (
        f'<figure class="cvq-card {kind}">{picture(image, alt)}'
        f"<figcaption><b>{escape(title)}</b>{said}</figcaption></figure>"
    )


def compared(of: Tokenized, ours: Version, others: Sequence[Version], length: int, file: bytes) -> str:
    """The original, the prefix and the other codecs, with bytes and PSNR; the .cvq file to download."""
    total, side = len(of.ids), f"{of.picture.width} x {of.picture.height} px"
    link = f"data:application/octet-stream;base64,{base64.b64encode(file).decode()}"
    cards = [
        card(of.picture, "Original", (side, f"{3 * of.picture.width * of.picture.height:,} B raw"), "The original."),
        _version(ours, f"The picture of {length} tokens.", "cvq-ours"),
        *(_version(other, f"The picture by {other.name} at as many bytes.") for other in others),
    ]
    return (
        f'<div class="cvq-figures" role="status"><span><b>{length}</b> of {total} tokens</span>'
        f"<span><b>{ours.num_bytes}</b> bytes</span><span><b>{ours.psnr:.1f}</b> dB</span>"
        f'<a class="cvq-download" download="picture-{length}.cvq" href="{link}">Download .cvq '
        f"<small>{len(file)} B</small></a></div>"
        f'<div class="cvq-cards">{"".join(cards)}</div>'
        + note("JPEG and WebP: the best of all qualities and of four scales; their headers are not counted.")
    )


def _version(version: Version, alt: str, kind: str = "") -> str:
    size = f"{version.num_bytes} B" if version.fits else f"needs {version.num_bytes} B"
    return card(version.picture, version.name, (size, f"{version.psnr:.1f} dB"), alt, kind)


def tiles(pictures: Sequence[Image.Image], ids: Sequence[int], length: int) -> str:
    """What each token adds; those beyond the prefix are faint."""
    cells = [
        f'<figure class="cvq-tile {"" if k < length else "cvq-off"}" title="token {k + 1}: code {code}">'
        f"{picture(image, f'What token {k + 1}, code {code}, adds.')}<figcaption>{code}</figcaption></figure>"
        for k, (image, code) in enumerate(zip(pictures, ids, strict=True))
    ]
    return f'<div class="cvq-tiles">{"".join(cells)}</div>'


def change(what: Change, title: str) -> str:
    """Before, after and their difference."""
    cards = (
        card(what.before, "Before", ("all tokens",), "The picture of all tokens."),
        card(what.after, "After", (title,), f"The picture after: {title}.", "cvq-ours"),
        card(what.difference, "Difference", (f"{LOUDER} times as large", f"{what.psnr:.1f} dB"), "What is different."),
    )
    return f'<div class="cvq-cards cvq-three">{"".join(cards)}</div>'


def drawn(step: Step, total: int, prompt: str, before: Sequence[tuple[int, Image.Image]] = ()) -> str:
    """Pictures on their way, how far they are, and the first one at earlier steps (tokens, picture)."""
    one = len(step.pictures) == 1
    shown = "".join(
        card(image, f"seed {seed}", (), f"{prompt or 'anything'}, seed {seed}, {step.length} tokens")
        for image, seed in zip(step.pictures, step.seeds, strict=True)
    )
    percent = 100 * step.length // total
    history = "".join(
        f'<figure class="cvq-tile">{picture(image, f"The picture of {k} tokens.")}<figcaption>{k}</figcaption></figure>'
        for k, image in before
    )
    return (
        f'<div class="cvq-drawn {"cvq-one" if one else ""}" data-tokens="{step.length}">'
        f'<div class="cvq-progress" role="progressbar" aria-label="Tokens drawn" aria-valuenow="{step.length}" '
        f'aria-valuemin="0" aria-valuemax="{total}"><i style="width:{percent}%"></i></div>'
        f'<p class="cvq-count"><b>{step.length}</b> of {total} tokens</p>'
        f'<div class="cvq-cards">{shown}</div>'
        f'<div class="cvq-tiles cvq-history">{history if one else ""}</div></div>'
    )


def atlas(found: Sequence[Tile], known: bool) -> str:
    """Tiles of codes; known: whether it is known how often each stands there."""
    cells = [
        f'<figure class="cvq-tile" title="code {tile.code}">{picture(tile.picture, f"What code {tile.code} adds.")}'
        f"<figcaption>{tile.code}{f'<br>{100 * tile.share:.1f}%' if known else ''}</figcaption></figure>"
        for tile in found
    ]
    return f'<div class="cvq-tiles cvq-large">{"".join(cells)}</div>'


def use(effective: Float64[Tensor, " K"] | None, codebook_size: int, chosen: int) -> str:
    """Codes in use at each place, as bars."""
    if effective is None:
        return note("How often each code is used is not known: this tokenizer has no code tables (`cvq tables`).")
    heights = (100 * effective / codebook_size).clamp(min=1.0).tolist()
    bars = "".join(
        f'<i class="{"cvq-chosen" if k + 1 == chosen else ""}" style="height:{heights[k]:.1f}%"'
        f' title="token {k + 1}: {value:.0f} codes"></i>'
        for k, value in enumerate(effective.tolist())
    )
    mean = float(effective.mean())
    label = f"Codes in use at each of {len(effective)} places, {mean:.0f} of {codebook_size} on average."
    return (
        f'<div class="cvq-figures"><span><b>{codebook_size:,}</b> codes</span><span><b>{mean:,.0f}</b> in use at a '
        f"place</span><span><b>{effective[chosen - 1]:,.0f}</b> at token {chosen}</span></div>"
        f'<div class="cvq-bars" role="img" aria-label="{label}">{bars}</div>'
        + note("Codes in use: the perplexity of the code tables, counted on training pictures. A bar is a token.")
    )
