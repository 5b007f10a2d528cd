"""FEMNIST: handwritten digits and letters with their writers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Gt, Lt

from fedmr_merge.errors import DataError
from fedmr_merge.federated.data.datasets._hold_out import hold_out
from fedmr_merge.federated.data.datasets._images import ImageDataSet, Numbers, Part, Pixels, numbered
from fedmr_merge.federated.data.datasets._table import decode, has_parquet, read_hub, read_local, values
from fedmr_merge.federated.data.images import ImageData
from fedmr_merge.paths import local_path
from fedmr_merge.seeds import generator

_REPO = "flwrlabs/femnist"
_COLUMNS = ("image", "writer_id", "character")
_TEST_SHARE = 0.1
_CLASSES = tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")


@dataclass(frozen=True, kw_only=True)
class Femnist(ImageDataSet):
    """28x28 grey images of 62 characters by thousands of writers (Caldas et al. 2018, LEAF), for `natural`.

    A writer's examples are divided into a training and a test part: as LEAF did it, or, where there is no such
    division (on the Hub), with a tenth for testing.
    """

    path: str | None = None
    """A folder with LEAF's JSON files in `train/` and `test/`, or with the parquet files of the Hub's flwrlabs/femnist;
    `null` loads it from the Hub or its cache."""
    writers: Annotated[int, Ge(1)] | None = None  #: how many writers, drawn by lot; `null` for all
    min_examples: Annotated[int, Ge(2)] = 100  #: a writer with fewer, both parts together, is left out
    test_share: Annotated[float, Gt(0), Lt(1)] | None = None
    """Share of every writer's examples that is held out; `null` for LEAF's own division, or a tenth."""
    padding: Annotated[int, Ge(0)] = 0  #: white pixels added on every side; 2 make the 32x32 that vgg16 needs

    @property
    def hub_id(self) -> str | None:
        """Return the name that it has on the Hub, wherever it was read from."""
        return _REPO

    def load(self) -> ImageData:
        """Return the data; the natural client of an example is its writer."""
        folder = None if self.path is None else local_path(self.path)
        notes: tuple[str, ...] = ()
        if folder is not None and (folder / "train").is_dir() and list((folder / "train").glob("*.json")):
            images, labels, names, test, notes = _read_leaf(folder)
            kept = self._kept(names)
            images, labels = images[kept], labels[kept]
            test = test[kept] if self.test_share is None else self._held_out(names[kept])
        else:
            if folder is None:
                table = read_hub(_REPO, None, "train", _COLUMNS)
            elif folder.is_dir() and has_parquet(folder):
                table = read_local(folder, "train", _COLUMNS)
            else:
                raise DataError(
                    f"{folder}: there is no femnist, neither LEAF's JSON files in train/ and test/ nor parquet files",
                    hint=f"`hf download {_REPO} --repo-type dataset --local-dir {folder}`, or LEAF's preprocess.sh",
                    path=folder,
                )
            names = values(table, "writer_id").astype(str)
            # Only what is kept is decoded: a twentieth of the data set is what the paper trains on.
            kept = self._kept(names)
            table = table.take(kept)
            images, labels = decode(table, "image", colour=False), values(table, "character").astype(np.int64)
            test = self._held_out(names[kept])
        writers = numbered(names[kept])[0]
        images = np.pad(images, [(0, 0), (0, 0), *[(self.padding, self.padding)] * 2], constant_values=255)
        return self.assemble(
            Part(images[~test], labels[~test], writers[~test]), Part(images[test], labels[test]), _CLASSES, notes
        )

    def _kept(self, names: np.ndarray) -> Numbers:
        """Return the examples of the writers that are kept, by index."""
        numbers, writers = numbered(names)
        enough = np.flatnonzero(np.bincount(numbers) >= self.min_examples)
        wanted = len(enough) if self.writers is None else self.writers
        if not 0 < wanted <= len(enough):
            raise DataError(
                f"{len(enough)} of {len(writers)} writers have at least {self.min_examples} examples"
                + ("" if self.writers is None else f", {wanted} are asked for"),
                hint="lower data.min_examples" + ("" if self.writers is None else " or data.writers"),
            )
        # A fixed seed, as for what is held out.
        chosen = generator(0, "femnist: writers").permutation(enough)[:wanted]
        return np.flatnonzero(np.isin(numbers, chosen))

    def _held_out(self, names: np.ndarray) -> np.ndarray:
        return hold_out(numbered(names)[0], self.test_share or _TEST_SHARE, "femnist: held-out part")


def _read_leaf(folder: Path) -> tuple[Pixels, Numbers, np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return images, labels, writers and whether it is for testing, for every example of LEAF's two parts, and notes.

    Raises DataError where the pixels of some writers are from 0 to 1, and those of others whole numbers to 255.
    """
    images, whites, labels, writers, test = [], [], [], [], []
    for is_test, part in enumerate(("train", "test")):
        for file in sorted((folder / part).glob("*.json")):
            for writer, pixels, white, characters in _read_users(file):
                images.append(pixels)
                whites.append(white)
                labels += characters
                writers += [writer] * len(characters)
                test += [bool(is_test)] * len(characters)
    if True not in test:
        raise DataError(
            f"{folder / 'test'}: there are no JSON files",
            hint="run LEAF's preprocess.sh with -t sample",
            path=folder / "test",
        )
    notes: tuple[str, ...] = ()
    if 255 in whites:
        if 1 in whites:
            raise DataError(
                f"{folder}: some writers have pixels from 0 to 1, others whole ones to 255",
                hint="write all of them in one scale",
                path=folder,
            )
        images = [pixels if white else pixels // 255 for pixels, white in zip(images, whites, strict=True)]
        notes = (
            "the pixels are whole numbers to 255, not from 0 to 1 as LEAF writes them: they are taken as they are",
        )
    return np.concatenate(images), np.array(labels, dtype=np.int64), np.array(writers), np.array(test), notes


def _read_users(file: Path) -> Iterator[tuple[str, Pixels, int | None, list[int]]]:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        for writer, data in content["user_data"].items():
            pixels, white = _scaled(data["x"], writer)
            pixels = pixels.reshape(-1, 1, 28, 28)
            characters = [_whole(label, writer) for label in data["y"]]
            if len(characters) != len(pixels):
                raise ValueError(f"writer {writer} has {len(pixels)} images and {len(characters)} labels")
            yield writer, pixels, white, characters
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise DataError(f"{file}: not a file of LEAF's FEMNIST: {error}", path=file) from error


def _scaled(values: Any, writer: str) -> tuple[Pixels, int | None]:
    """Return pixels from 0 to 255, and what white was: 1, as LEAF writes it, or 255, where the numbers stay.

    It is None where the pixels are zeros and ones alone, which are taken for LEAF's and are right in either scale
    once the other writers have shown which. Raises ValueError for any other numbers.
    """
    found = np.array(values, dtype=np.float64)
    low, high = found.min(initial=0.0), found.max(initial=0.0)  # NaN where one is NaN
    if low >= 0 and high <= 1:
        is_binary = np.array_equal(found, np.rint(found))
        return np.rint(found * 255).astype(np.uint8), None if is_binary else 1
    if low >= 0 and high <= 255 and np.array_equal(found, np.rint(found)):
        return found.astype(np.uint8), 255
    raise ValueError(
        f"writer {str(writer)[:60]} has pixels from {low} to {high}; expected 0 to 1, or whole ones to 255"
    )


def _whole(label: Any, writer: str) -> int:
    if isinstance(label, bool) or not isinstance(label, int | float) or label != int(label):
        raise ValueError(f"writer {str(writer)[:60]} has the label {str(label)[:20]}, which is not a whole number")
    return int(label)
