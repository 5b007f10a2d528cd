"""A card as one HTML page, to look at before it is published; pictures are in it, nothing is loaded from anywhere."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from fedmr_merge.checkpoint.writer import write_text
from fedmr_merge.errors import HubError
from fedmr_merge.publish.card import CARD_FILE
from fedmr_merge.publish.card_merge import split_card

if TYPE_CHECKING:
    from markdown_it.renderer import RendererHTML
    from markdown_it.token import Token
    from markdown_it.utils import EnvType, OptionsDict

_PICTURES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
}
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
# No script of a card runs, and no picture of another server is asked for.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_STYLE = """
body { max-width: 50rem; margin: 2rem auto; padding: 0 1rem; color: #1f2328; background: #fff;
       font: 16px/1.55 system-ui, sans-serif; }
h1, h2 { border-bottom: 1px solid #d8dee4; padding-bottom: .3rem; line-height: 1.25; }
img { max-width: 100%; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { border: 1px solid #d8dee4; padding: .3rem .7rem; }
code { background: #f3f4f6; padding: .1rem .3rem; border-radius: 4px; font-size: 85%; }
pre { background: #f6f8fa; padding: 1rem; overflow-x: auto; border-radius: 6px; }
pre code { background: none; padding: 0; }
.metadata { color: #57606a; border: 1px solid #d8dee4; border-radius: 6px; padding: .5rem 1rem; }
"""


def write_preview(folder: Path, target: Path) -> Path:
    """Render the card of a folder to one HTML file. Returns its path.

    Raises HubError when the folder has no card.
    """
    card = folder / CARD_FILE
    if not card.is_file():
        raise HubError(f"{folder}: has no {CARD_FILE} to show")
    write_text(target, preview(card.read_text(encoding="utf-8", errors="replace"), folder))
    return target


def preview(card: str, folder: Path) -> str:
    """Return a card as an HTML page; its pictures are read from the folder."""
    from markdown_it import MarkdownIt

    metadata, body = split_card(card)
    markdown = MarkdownIt("commonmark", {"html": True}).enable("table")

    def image(renderer: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
        token = tokens[index]
        token.attrSet("src", _inlined(str(token.attrGet("src")), folder))
        return renderer.image(tokens, index, options, env)

    markdown.add_render_rule("image", image)
    content: Any = markdown.render(_COMMENT.sub("", body))
    title = re.search(r"^# (.+)$", body, re.MULTILINE)
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{html.escape(title[1] if title else folder.name)}</title>\n<style>{_STYLE}</style>\n"
        f'<details class="metadata"><summary>Metadata</summary><pre>{html.escape(metadata or "none")}</pre></details>\n'
        f"{content}</html>\n"
    )


def _inlined(source: str, folder: Path) -> str:
    """Return a picture of the folder as a data address; any other address as it is."""
    path = PurePosixPath(source)
    kind = _PICTURES.get(path.suffix.lower())
    if kind is None or path.is_absolute() or ".." in path.parts or not (folder / path).is_file():
        return source
    return f"data:{kind};base64,{base64.b64encode((folder / path).read_bytes()).decode('ascii')}"
