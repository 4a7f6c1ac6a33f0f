"""One HTML document with its pictures inside, as the reports are written."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from string import Template

from PIL import Image


def rows(cells: Iterable[Sequence[str]]) -> str:
    """Rows of a table."""
    return "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in cells)


def figure(title: str, image: Image.Image, caption: str) -> str:
    """A picture with its caption."""
    file = io.BytesIO()
    image.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return _FIGURE.substitute(
        title=escape(title), caption=escape(caption), data=data, width=image.width, height=image.height
    )


def document(title: str, body: str) -> str:
    """A whole document; body is HTML."""
    return _PAGE.substitute(title=escape(title), body=body)


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
