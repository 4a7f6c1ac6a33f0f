"""What the documentation site has beside docs/: pages made from the code, and the files that the pages link to.

mkdocs calls the functions named on_...; mkdocs.yml names this file.
"""

import posixpath
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and what lies outside docs/ and is linked to, as repository/..."""
    made = {"reference/settings.md": settings_page(), "reference/commands.md": commands_page()}
    for name, text in made.items():
        files.append(File.generated(config, name, content=text))
    pages = [ROOT / "docs" / name for name in files.src_uris if name.endswith(".md") and name not in made]
    todo = [target for page in pages for target in linked(page)]
    done: set[Path] = set()
    while todo:
        target = todo.pop()
        if target in done or target.is_dir() or target.is_relative_to(ROOT / "docs"):
            continue
        done.add(target)
        files.append(File.generated(config, outside(target), abs_src_path=str(target)))
        todo += linked(target) if target.suffix == ".md" else []
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links out of docs/ lead to the copies in the site; to folders, nowhere."""
    source = page.file.src_uri
    home = ROOT / (source.removeprefix("repository/") if source.startswith("repository/") else f"docs/{source}")

    def led(match: re.Match[str]) -> str:
        target = resolved(home, match[2])
        if target is None or not target.exists():
            return match[0]
        if target.is_dir():
            target = ROOT / "docs/index.md"
        inside = target.is_relative_to(ROOT / "docs")
        uri = target.relative_to(ROOT / "docs").as_posix() if inside else outside(target)
        return match[1] + posixpath.relpath(uri, posixpath.dirname(source) or ".") + match[3]

    return LINK.sub(led, markdown)


def resolved(page: Path, link: str) -> Path | None:
    """The file that a link of a page means; None for an address."""
    return None if ":" in link or link.startswith("/") else (page.parent / link).resolve()


def linked(page: Path) -> Iterator[Path]:
    """The files that a page links to and that are there."""
    for match in LINK.finditer(page.read_text(encoding="utf-8")):
        target = resolved(page, match[2])
        if target is not None and target.exists() and target.is_relative_to(ROOT):
            yield target


def outside(target: Path) -> str:
    """Where a file outside docs/ stands in the site."""
    return f"repository/{target.relative_to(ROOT).as_posix()}"


# Settings


def settings_page() -> str:
    """All settings of recipes: from the dataclasses, with the help that `cvq show` prints."""
    from channelvq.data.build import SOURCES, DataConfig
    from channelvq.losses.adversarial import AdversarialConfig
    from channelvq.losses.perceptual import PerceptualLossConfig
    from channelvq.losses.semantic import SemanticConfig
    from channelvq.nested import CurriculumConfig
    from channelvq.nn.networks import NETWORKS
    from channelvq.nn.unet import UNetConfig
    from channelvq.quantize.registry import QUANTIZERS
    from channelvq.train.car_task import CARRecipe
    from channelvq.train.config import TrainConfig
    from channelvq.train.tokenizer_task import TokenizerRecipe

    tokenizer, car = get_type_hints(TokenizerRecipe), get_type_hints(CARRecipe)
    sections: list[tuple[str, Any]] = [
        ("`train`: the loop, whatever is trained", TrainConfig),
        ("`model`: a tokenizer", tokenizer["model"]),
        *((f"`model.network`, kind `{name}`", NETWORKS[name]) for name in NETWORKS.names()),
        ("`model.network.encoder` and `decoder` of kind `linear`", UNetConfig),
        *((f"`model.quantizer`, kind `{name}`", QUANTIZERS[name]) for name in QUANTIZERS.names()),
        ("`nested`: prefixes that decode", tokenizer["nested"]),
        ("`nested.curriculum`", CurriculumConfig),
        ("`objective`: a tokenizer", tokenizer["objective"]),
        ("`objective.perceptual`", PerceptualLossConfig),
        ("`objective.adversarial`", AdversarialConfig),
        ("`objective.semantic`", SemanticConfig),
        ("`data`: what it is trained on", DataConfig),
        *((f"`data.sources.NAME`, kind `{name}`", SOURCES[name]) for name in SOURCES.names()),
        ("A recipe of a generator (`task: car`)", CARRecipe),
        ("`model`: a generator", car["model"]),
        ("`objective`: a generator", car["objective"]),
    ]
    head = (
        "# Settings\n\nEvery setting that a recipe can have. Give them on the command line as `key=value` "
        "(`cvq train small/own train.steps=500`), or in a YAML file of your own. `cvq show RECIPE` prints a recipe "
        "with all of them filled in. A key that does not exist is an error, and all mistakes are named at once.\n"
    )
    return head + "".join(f"\n## {title}\n\n{_settings_table(cls)}" for title, cls in sections)


def _settings_table(cls: Any) -> str:
    from channelvq.train.recipe_text import settings_help

    told, hints = settings_help(cls), get_type_hints(cls)
    rows = ["| setting | default | what it is |", "| --- | --- | --- |"]
    for field in fields(cls):
        text = told.get(field.name, "").replace("|", "\\|")
        words = [str(word) for word in get_args(hints[field.name])] if get_origin(hints[field.name]) is Literal else []
        if len(words) > 1:
            text += f" ({', '.join(f'`{word}`' for word in words)})"
        rows.append(f"| `{field.name}` | {_default(field)} | {text.strip()} |")
    return "\n".join(rows) + "\n"


def _default(field: Any) -> str:
    if field.default is not MISSING and isinstance(field.default, (bool, int, float, str, tuple, type(None))):
        value = list(field.default) if isinstance(field.default, tuple) else field.default
        return "none" if value is None else f"`{value}`".lower() if isinstance(value, bool) else f"`{value}`"
    return "must be given" if field.default is MISSING and field.default_factory is MISSING else "see below"


# Commands


def commands_page() -> str:
    """The help of every command."""
    from typer.main import get_command

    from channelvq.cli import app

    group: Any = get_command(app)
    parts = ["# Commands\n\nWhat `cvq COMMAND --help` tells. Errors that you can mend are one line and exit code 2.\n"]
    context: Any = None
    for name in group.list_commands(context):
        parts += _command(group.get_command(context, name), f"cvq {name}", 2)
    return "\n".join(parts)


def _command(command: Any, name: str, level: int) -> Iterator[str]:
    yield f"{'#' * level} {name}\n\n{' '.join((command.help or '').split())}\n"
    if getattr(command, "commands", None):
        for under, nested in command.commands.items():
            yield from _command(nested, f"{name} {under}", level + 1)
        return
    rows = ["| argument or option | default | what it is |", "| --- | --- | --- |"]
    for parameter in command.params:
        if parameter.name == "help":
            continue
        option = parameter.param_type_name == "option"
        names = ", ".join(f"`{opt}`" for opt in parameter.opts) if option else f"`{parameter.name.upper()}`"
        default = parameter.default
        shown = "" if default is None or callable(default) or default is False or parameter.required else f"`{default}`"
        text = (getattr(parameter, "help", None) or "").replace("|", "\\|")
        rows.append(f"| {names} | {'must be given' if parameter.required else shown} | {text} |")
    yield "\n".join(rows) + "\n"
