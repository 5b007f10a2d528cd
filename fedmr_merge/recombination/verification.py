"""The report of a verification."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Verification:
    """What was proved of an output, and what was found to be wrong."""

    tensors: int = 0  #: output tensors whose bytes were read and compared
    nbytes: int = 0  #: of their files
    proved: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)  #: all of them; empty where the output is what it should be
    skipped: list[str] = field(default_factory=list)  #: what could not be checked, and why
    warnings: list[str] = field(default_factory=list)  #: what has changed since, without a fault of the weights
    hint: str = "recombine the inputs again, to another folder"  #: what to do about the faults

    @property
    def ok(self) -> bool:
        """Whether no fault was found."""
        return not self.faults

    def nothing_vouches(self, folder: object, missing: str) -> None:
        """Add the fault that there is nothing to compare the bytes with."""
        self.faults.append(
            f"{folder}: nothing vouches for the bytes: no SHA-256 of them is recorded, and {missing}",
        )
        self.hint = (
            "bring the inputs back or name them all with --against, in the order of their slots; "
            "`recombine --hash` records hashes at once"
        )
