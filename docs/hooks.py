"""What mkdocs builds beside the pages: the start page is the README, whose links are those of a checkout."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README as the start page."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"\]\(docs/", "](", text)
    # What lies outside docs/ is not part of the site.
    text = re.sub(r"\[([^\]]*)\]\((?!https?:|#)([A-Z]+\.md)\)", r"\1", text)
    files.append(File.generated(config, "index.md", content=text))
    return files
