"""What the page says and allows before the generator is loaded; without torch, so that it is there at once."""

from html import escape

MOST_PICTURES = 8  # drawn together: as many as the sampler computes at once
PROMPT_CHARACTERS = 1000


def note(text: str) -> str:
    """A line of plain text, as HTML."""
    return f'<p class="cvq-note">{escape(text)}</p>'
