"""One HTML document with its pictures inside, as the reports are written."""

import base64
import io
from collections.abc import Iterable, Mapping
from html import escape
from string import Template

from PIL import Image

from channelvq.evaluate.tables import TextTable

Pictures = Mapping[str, tuple[Image.Image, str]]  # by title, each with its caption


def pairs(rows: Iterable[tuple[str, object]]) -> str:
    """A table of names and values."""
    return TextTable((), [(name, str(value)) for name, value in rows]).html()


def figures(pictures: Pictures) -> str:
    """The pictures with their captions, one below the other."""
    return "".join(_figure(title, image, caption) for title, (image, caption) in pictures.items())


def _figure(title: str, image: Image.Image, caption: str) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return _FIGURE.substitute(
        title=escape(title), caption=escape(caption), data=data, width=image.width, height=image.height
    )


def details(summary: str, body: str) -> str:
    """What is folded until a reader asks for it; body is HTML."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>\n"


def document(title: str, about: str, *parts: str) -> str:
    """A full document: a heading, a line about it, and HTML."""
    head = f"<h1>{escape(title)}</h1><p>{escape(about)}</p>"
    return _PAGE.substitute(title=escape(title), body="\n".join([head, *parts]))


_FIGURE = Template("""<figure><img alt="$title" width="$width" height="$height" src="data:image/png;base64,$data">
<figcaption>$caption</figcaption></figure>
""")
_PAGE = Template("""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>$title</title>
<style>
body { font: 16px/1.45 system-ui, sans-serif; max-width: 1140px; margin: 2em auto; padding: 0 1em; color: #222 }
h1 { font-size: 1.5em; margin-bottom: 0 } h2 { font-size: 1.2em; margin-top: 2em } h3 { margin: 0 }
section { border-left: 6px solid; padding: .4em 1em; margin: 1em 0 }
section p { margin: .3em 0 } table { border-collapse: collapse; margin: 1em 0 }
td, th { text-align: left; border-bottom: 1px solid #ddd; padding: .2em .9em .2em 0;
  font-variant-numeric: tabular-nums }
.problem { border-color: #c0392b } .warning { border-color: #d68910 } .note { border-color: #2e86c1 }
.healthy { border-color: #1e8449 } .verdict { font-size: 1.2em }
figure { margin: 2em 0 } img { max-width: 100%; height: auto } figcaption { color: #555; max-width: 50em }
</style></head><body>
$body
</body></html>
""")
