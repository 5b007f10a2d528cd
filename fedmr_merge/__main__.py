"""`python -m fedmr_merge`."""

from fedmr_merge.cli import main

main()
