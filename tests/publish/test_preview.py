"""The card as a page: complete in itself, and seen by a real browser where there is one."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from fedmr_merge.errors import HubError
from fedmr_merge.publish.preview import preview, write_preview

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "card" / "deep").mkdir(parents=True)
    (tmp_path / "card" / "a.png").write_bytes(PIXEL)
    (tmp_path / "card" / "deep" / "b.png").write_bytes(PIXEL)
    (tmp_path / "secret.png").write_bytes(b"secret")
    return tmp_path / "card"


def sources(page: str) -> list[str]:
    return re.findall(r'<img src="([^"]*)"', page)


def test_pictures_of_the_folder_are_in_the_page(folder: Path) -> None:
    page = preview("![a](a.png) ![b](deep/b.png) ![c](./a.png)", folder)
    assert [source.split(",")[0] for source in sources(page)] == ["data:image/png;base64"] * 3
    assert base64.b64decode(sources(page)[0].split(",")[1]) == PIXEL


@pytest.mark.parametrize("source", ["../secret.png", "deep/../../secret.png", "absent.png", "https://x.example/a.png"])
def test_other_pictures_are_not(folder: Path, source: str) -> None:
    assert sources(preview(f"![x]({source})", folder)) == [source]


def test_absolute_paths_are_not_read(folder: Path) -> None:
    assert "c2VjcmV0" not in preview(f"![x]({folder.parent}/secret.png)", folder)


def test_metadata_is_text_and_tables_are_tables(folder: Path) -> None:
    page = preview("---\nx: <script>\n---\n# T <b>\n\n| a | b |\n| - | - |\n| 1 | 2 |\n\n<!-- gone -->", folder)
    assert "x: &lt;script&gt;" in page
    assert "<td>2</td>" in page
    assert "<title>T &lt;b&gt;</title>" in page
    assert "gone" not in page
    assert "none</pre>" in preview("# bare", folder)


def test_nothing_is_loaded_and_no_script_runs(folder: Path) -> None:
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in preview("", folder)


def test_folder_without_a_card(folder: Path) -> None:
    with pytest.raises(HubError, match=r"has no README\.md to show"):
        write_preview(folder, folder / "x.html")


def chromium(profile: Path, *arguments: str) -> str:
    assert CHROMIUM is not None
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command = [CHROMIUM, *flags, f"--user-data-dir={profile}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")
def test_browser_shows_every_picture_and_runs_no_script_of_the_card(trained: Path, tmp_path: Path) -> None:
    page = write_preview(trained / "global", tmp_path / "card.html")
    chromium(tmp_path / "p", "--window-size=900,3000", f"--screenshot={tmp_path / 'card.png'}", page.as_uri())
    pixels = imread(tmp_path / "card.png")[:, :, :3]
    assert (pixels[0, 0] == 1).all(), "the page is white"
    red, green, blue = np.moveaxis((pixels * 255).round().astype(int), 2, 0)
    assert {0xDFE8F3, 0x0072B2} <= set(np.unique(red << 16 | green << 8 | blue)), "a stage of the curve, a class"

    # The same page once more, with a script that tells what the browser made of it; the page's own policy forbids it.
    script = (
        "<script>onload = () => { document.body.innerHTML = JSON.stringify("
        "[...document.images].map(i => [i.complete, i.naturalWidth])) }</script>"
    )
    text = page.read_text()
    page.write_text(text + script)
    assert "class=" in chromium(tmp_path / "p", "--dump-dom", page.as_uri()), "the script did not run"
    page.write_text(re.sub(r"<meta http-equiv[^>]*>", "", text) + script)
    [found] = re.findall(r"\[\[.*\]\]", chromium(tmp_path / "p", "--dump-dom", page.as_uri()))
    pictures = json.loads(found)
    assert len(pictures) == 2
    assert all(complete and width > 500 for complete, width in pictures)
