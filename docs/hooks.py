"""What mkdocs builds beside the pages of docs/.

The start page is the README, whose links are those of a checkout. The page of plug-ins and their options is made from
the plug-ins, and the table of methods and options by trying each beside each.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from fedmr_merge.recipe.option_table import option_table_page
from fedmr_merge.recipe.reference_page import reference_page

ROOT = Path(__file__).parents[1]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"\]\(docs/", "](", text)
    # What lies outside docs/ is not part of the site.
    text = re.sub(r"\[([^\]]*)\]\((?!https?:|#)([A-Z]+\.md)\)", r"\1", text)
    files.append(File.generated(config, "index.md", content=text))
    files.append(File.generated(config, "reference.md", content=reference_page()))
    files.append(File.generated(config, "options.md", content=option_table_page()))
    return files
