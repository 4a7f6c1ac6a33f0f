"""The page itself, in gradio: what is where, and which action of the `Studio` answers it. No network, one machine."""

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reads it when it is imported

import gradio as gr  # pyright: ignore[reportMissingImports]  # an extra that the tests do without
from gradio.themes import Base  # pyright: ignore[reportMissingImports]

from channelvq.app.words import MOST_PICTURES, PROMPT_CHARACTERS, note
from channelvq.car.settings import SamplingSettings
from channelvq.errors import InputError

if TYPE_CHECKING:  # they import torch, for which the page does not wait
    from channelvq.app.studio import Studio
    from channelvq.app.tokens import Tokenized

HOST = "127.0.0.1"  # there is no key and no TLS: this page is for who sits here
MOST_BYTES = "16mb"
TITLE = "channelvq"
PROMPTS = (
    "a photo of two bananas",
    "a photo of a red car left of a blue umbrella",
    "a photo of a green dog",
    "a photo of a cat above a chair",
    "a photo of a purple bus and a yellow bird",
)
SYSTEM_FONTS = ("ui-sans-serif", "system-ui", "sans-serif")
NOTHING, UPLOADED, DRAWN = "nothing", "the picture of the tab Tokenize", "the picture drawn last"
REMOVE, REPLACE = "remove it", "put another code there"
HEAD = (
    '<div class="cvq-head"><h1><em>A picture is a sentence</em> of tokens</h1><p>Each token is one channel of the '
    "whole picture: the first ones say what it is, the later ones how it looks. Stop anywhere.</p></div>"
)


def build(loading: "Future[Studio]") -> gr.Blocks:
    """The page, to be launched by `launch`; what is asked before its actions are loaded waits for them."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.HTML(HEAD)
        seen, drawn = gr.State(None), gr.State(None)
        on = _Actions(loading)
        with gr.Tab("Tokenize", id="tokenize"):
            tokenize = _tokenize_tab(on, seen)
        with gr.Tab("Generate", id="generate"):
            generate = _generate_tab(on, seen, drawn)
        with gr.Tab("Codebook", id="codebook") as tab:
            codebook = _codebook_tab(on, seen, tab)
        shown = [seen, *tokenize]
        on(page.load, on.begin, None, [*shown, generate, codebook], trigger_mode="once")
    return page


def launch(page: gr.Blocks, port: int) -> None:
    """Show it on this machine alone and return; OSError where the port is taken."""
    page.queue(default_concurrency_limit=1, max_size=32)
    page.launch(
        server_name=HOST, server_port=port, share=False, quiet=True, prevent_thread_lock=True, footer_links=[],
        max_file_size=MOST_BYTES, enable_monitoring=False, ssr_mode=False, pwa=False, mcp_server=False,
        css_paths=Path(__file__).with_name("style.css"),
        theme=Base(
            primary_hue="violet", neutral_hue="slate", radius_size="lg", font=SYSTEM_FONTS,
            font_mono=("ui-monospace", "monospace"),
        ),
    )  # fmt: skip


def run(load: "Callable[[], Studio]", port: int, tell: Callable[[str], None]) -> None:
    """Show the page, load the generator, and go on until Ctrl-C or SIGTERM. What visitors gave is deleted then."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="cvq-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        loading: Future[Studio] = Future()
        page = build(loading)
        launch(page, port)
        tell(f"http://{HOST}:{port}")
        try:
            loading.set_result(load())
            page.block_thread()
        finally:
            if not loading.done():
                loading.cancel()
            page.close(verbose=False)


class _Actions:
    """Listeners of the page: one at a time on the one device, errors told to the visitor."""

    def __init__(self, loading: "Future[Studio]") -> None:
        self.loading = loading

    @property
    def studio(self) -> "Studio":
        """What answers them; waits for it."""
        return self.loading.result()

    def __call__(self, event: Any, action: Callable[..., Any], inputs: Any, outputs: Any, **how: Any) -> Any:
        settings = {"concurrency_id": "device", "concurrency_limit": 1, "api_visibility": "private"} | how
        return event(told(action), inputs, outputs, show_progress=settings.pop("show_progress", "hidden"), **settings)

    def begin(self) -> tuple[Any, ...]:
        """The page as the generator makes it: ranges of its sliders, and a first picture."""
        tokenizer, drawn = self.studio.tokenizer, self.studio.car.num_tokens
        most = tokenizer.num_tokens
        picture = self.studio.example(1)
        return (
            *self.all_of(picture, most // 2), gr.Slider(1, most, most // 2, step=1), gr.Slider(1, most, 1, step=1),
            gr.Slider(0, tokenizer.codebook_size - 1, picture.ids[0], step=1),
            gr.Slider(1, drawn - 1, max(1, drawn // 8), step=1), gr.Slider(1, most, 1, step=1),
        )  # fmt: skip

    def all_of(self, of: "Tokenized", length: int) -> tuple["Tokenized", str, str, str]:
        """Everything that depends on the picture."""
        return of, self.studio.compared(of, length), self.studio.tiles(of, length), self.studio.changed(of, 1, None)

    def example(self, number: int, length: int) -> tuple[Any, ...]:
        """Another drawn scene."""
        return number + 1, None, *self.all_of(self.studio.example(number + 1), int(length))

    def upload(self, path: str | None, length: int) -> tuple[Any, ...]:
        """The visitor's picture; nothing where it was taken away."""
        return self.all_of(self.studio.upload(path), int(length)) if path else (gr.skip(),) * 4

    def slide(self, of: "Tokenized | None", length: int) -> tuple[Any, Any]:
        """Another number of tokens."""
        if of is None:
            return gr.skip(), gr.skip()
        return self.studio.compared(of, int(length)), self.studio.tiles(of, int(length))

    def change(self, of: "Tokenized | None", number: int, how: str, code: int) -> Any:
        """Another token, or another code in its place."""
        return gr.skip() if of is None else self.studio.changed(of, int(number), int(code) if how == REPLACE else None)

    def draw(
        self, of: "Tokenized | None", last: list[int] | None, prompt: str, seed: float, guidance: float,
        temperature: float, count: int, source: str, keep: int,
    ) -> Iterator[tuple[Any, ...]]:  # fmt: skip
        """Pictures that get richer, then the tokens of the first."""
        given = last if source == DRAWN else None
        if source == UPLOADED and of is not None:
            given = self.studio.beginning(of)
        if source != NOTHING and not given:
            raise InputError("there is no such picture yet: draw or choose one first")
        settings = SamplingSettings(guidance, temperature, seed=int(seed or 0))
        ids, warning = last, self.studio.warning(prompt)
        for shown, step in self.studio.draw(prompt, settings, int(count), (given or ())[: int(keep)]):
            ids = step.ids[0]
            yield shown, warning, gr.skip()
        yield gr.skip(), warning, ids

    def atlas(self, of: "Tokenized | None", number: int) -> tuple[str, str]:
        """The codes of a token."""
        return self.studio.atlas(of, int(number))


def told(action: Callable[..., Any]) -> Callable[..., Any]:
    """The same action, whose InputErrors the visitor reads."""

    @wraps(action)
    def run(*given: Any) -> Any:
        try:
            return action(*given)
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from None

    @wraps(action)
    def steps(*given: Any) -> Iterator[Any]:
        try:
            yield from action(*given)
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from None

    return steps if action.__name__ == "draw" else run


def _tokenize_tab(on: _Actions, seen: gr.State) -> list[Any]:
    number = gr.State(1)
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=260):
            # A path: its size is looked at before its pixels are.
            upload = gr.Image(
                type="filepath", image_mode=None, sources=["upload", "clipboard"], label="Drop or paste a picture",
                height=230, buttons=[], elem_id="upload",
            )  # fmt: skip
            another = gr.Button("Another example", elem_id="another")
        with gr.Column(scale=3, min_width=320):
            length = gr.Slider(1, 2, 1, step=1, label="Tokens", elem_id="length", buttons=[])
            compared = gr.HTML(note("Loading the model ..."), elem_id="compared")
    with gr.Accordion("What each token adds", open=True):
        tiles = gr.HTML(elem_id="tiles")
    with gr.Accordion("Change one token", open=True), gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=260):
            place = gr.Slider(1, 2, 1, step=1, label="Token", elem_id="place", buttons=[])
            how = gr.Radio([REMOVE, REPLACE], value=REMOVE, show_label=False, elem_id="how")
            code = gr.Slider(0, 1, 0, step=1, label="Code", elem_id="code", buttons=[])
        with gr.Column(scale=2, min_width=320):
            changed = gr.HTML(elem_id="changed")
    shown = [seen, compared, tiles, changed]
    on(upload.change, on.upload, [upload, length], shown)
    on(another.click, on.example, [number, length], [number, upload, *shown])
    on(length.input, on.slide, [seen, length], [compared, tiles], trigger_mode="always_last")
    for part in (place.input, how.input, code.input):
        on(part, on.change, [seen, place, how, code], changed, trigger_mode="always_last")
    return [compared, tiles, changed, length, place, code]


def _generate_tab(on: _Actions, seen: gr.State, drawn: gr.State) -> gr.Slider:
    default = SamplingSettings()
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            prompt = gr.Textbox(PROMPTS[0], label="Prompt", max_length=PROMPT_CHARACTERS, elem_id="prompt")
            with gr.Row(elem_classes="cvq-prompts"):
                for text in PROMPTS[1:]:
                    choice = gr.Button(text.removeprefix("a photo of "), size="sm", min_width=90)
                    choice.click(partial(str, text), None, prompt, api_visibility="private", show_progress="hidden")
            count = gr.Radio([("one picture", 1), (f"{MOST_PICTURES} seeds", MOST_PICTURES)], value=1, label="Draw")
            with gr.Row():
                draw = gr.Button("Draw", variant="primary", elem_id="draw")
                stop = gr.Button("Stop")
            with gr.Accordion("Settings", open=False):
                seed = gr.Number(default.seed, label="Seed", precision=0, minimum=0, maximum=2**31, elem_id="seed")
                guidance = gr.Slider(1, 8, default.guidance_scale, label="Guidance: how closely it follows the prompt")
                temperature = gr.Slider(0, 2, default.temperature, label="Temperature: 0 takes the likeliest token")
            with gr.Accordion("Begin with another picture", open=False):
                source = gr.Radio([NOTHING, UPLOADED, DRAWN], value=NOTHING, label="Take the first tokens of")
                keep = gr.Slider(1, 2, 1, step=1, label="How many: few keep the layout, more the picture", buttons=[])
        with gr.Column(scale=3, min_width=320):
            warning = gr.HTML(elem_classes="cvq-warning")
            output = gr.HTML(note("Press Draw: the picture comes token by token."), elem_id="drawn")
    inputs = [seen, drawn, prompt, seed, guidance, temperature, count, source, keep]
    runs = [on(event, on.draw, inputs, [output, warning, drawn]) for event in (draw.click, prompt.submit)]
    stop.click(None, cancels=runs)
    return keep


def _codebook_tab(on: _Actions, seen: gr.State, tab: gr.Tab) -> gr.Slider:
    number = gr.Slider(1, 2, 1, step=1, label="Token", elem_id="atlas-token", buttons=[])
    use = gr.HTML(elem_id="use")
    gr.HTML(note(
        "The codes that this token takes most often, and what each adds to the tokens before it in the picture of the "
        "tab Tokenize. Grey is no change; the tiles of token 1 are whole pictures."
    ))  # fmt: skip
    tiles = gr.HTML(elem_id="atlas")
    on(number.input, on.atlas, [seen, number], [tiles, use], trigger_mode="always_last")
    on(tab.select, on.atlas, [seen, number], [tiles, use])
    return number
