"""Where a script writes into a page that people write: between the mark `<!-- figures: NAME -->` and the end's."""

from __future__ import annotations

BEGIN, END = "<!-- figures: {} -->\n", "<!-- end of figures -->"


def fill(page: str, name: str, text: str) -> str:
    """Return the page with another text between the marks of this name; exit where it does not have them."""
    begin = BEGIN.format(name)
    head, found, rest = page.partition(begin)
    _, end, tail = rest.partition(END)
    if not found or not end:
        raise SystemExit(f"the page has no place for the figures of {name}: {begin.strip()} … {END}")
    return f"{head}{begin}{text}{END}{tail}"
