"""The order in which people count: layer2 before layer10."""

from __future__ import annotations

import re
import sys


def natural_order(name: str) -> str:
    """Return a sort key under which layer2 comes before layer10."""

    def number(found: re.Match[str]) -> str:
        # Numbers compare by their length, then digit by digit: they may have thousands of digits.
        digits = found.group().lstrip("0")
        return f"\0{chr(min(len(digits), sys.maxunicode))}{digits}"

    return re.sub("[0-9]+", number, name)
