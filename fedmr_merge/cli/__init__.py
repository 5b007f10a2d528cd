"""The command line. The only place that prints.

A command imports what it needs when it runs, so that `--help` and the byte-level commands start without torch.
"""

from fedmr_merge.cli.app import main

__all__ = ["main"]
