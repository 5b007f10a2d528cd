"""Tables of images in the layout of the Hub's data sets: from local parquet files, from the Hub or from its cache."""

from __future__ import annotations

import contextlib
import io
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedmr_merge.errors import AbsentDataError, DataError, listed, shown

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL.Image import Image

    from fedmr_merge.federated.data.datasets._images import Pixels

_TIMEOUT_SECONDS = 10
_INSTALL = "pip install 'fedmr-merge[data]'"
_MOST_PIXELS = 50_000_000  # of an image: decoded, 150 MB
_SOURCES = b"fedmr_merge"  #: key of a table's metadata: where its rows are from, a list of [name, number of rows]


def read_local(path: Path, split: str, columns: Sequence[str]) -> pa.Table:
    """Read these columns of a split from parquet files: SPLIT-….parquet, SPLIT.parquet or SPLIT/….parquet in `path` or
    one folder below it.

    Nothing else is read, written or downloaded. Raises DataError.
    """
    files = _parquet_files(path, split)
    return read_parquet(files, path, columns)


def read_parquet(files: Sequence[Path], path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read these columns, or all, of parquet files; `path` is what messages call them. Raises DataError."""
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise DataError("reading parquet files needs pyarrow", hint=_INSTALL) from error
    try:
        if columns is not None:
            _require(columns, pq.read_schema(files[0]).names, str(files[0]))
        table = pq.read_table(files, columns=None if columns is None else list(columns), partitioning=None)
        return _with_sources(table, [(str(file), pq.read_metadata(file).num_rows) for file in files])
    except (OSError, ValueError) as error:
        at_fault = next((file for file in files if not _has_a_schema(file)), path)
        raise DataError(f"{at_fault}: cannot be read as parquet: {_line(error)}", path=at_fault) from error


def _has_a_schema(file: Path) -> bool:
    import pyarrow.parquet as pq

    try:
        pq.read_schema(file)
    except (OSError, ValueError):
        return False
    return True


def has_parquet(path: Path) -> bool:
    """Whether there is a parquet file in the folder or below it."""
    return next(path.rglob("*.parquet"), None) is not None


def _parquet_files(path: Path, split: str) -> list[Path]:
    if not path.is_dir():
        raise DataError(
            f"{path}: there is no such folder", hint="set data.path to a folder with parquet files", path=path
        )
    found = sorted(
        file
        for file in path.rglob("*.parquet")
        if file.stem == split or file.name.startswith(f"{split}-") or file.parent.name == split
    )
    if not found:
        raise DataError(
            f"{path}: there is no parquet file of the split {split!r}", hint=f"such as {split}.parquet", path=path
        )
    if len({file.parent for file in found}) > 1:
        folders = ", ".join(sorted({str(file.parent.relative_to(path)) for file in found}))
        raise DataError(
            f"{path}: the split {split!r} is in several folders: {folders}", hint="set data.path to one", path=path
        )
    return found


def read_hub(repo: str, config: str | None, split: str, columns: Sequence[str]) -> pa.Table:
    """Read these columns of a split of the Hub's data set, from the cache where it is there. Raises DataError."""
    try:
        import datasets
    except ImportError as error:
        raise DataError(f"the Hub's data set {repo} needs the library `datasets`", hint=_INSTALL) from error
    try:
        with _the_cache_alone_where_there_is_no_network():
            found = datasets.load_dataset(repo, config, split=split)
    except (OSError, ValueError) as error:
        raise AbsentDataError(
            f"the Hub's data set {repo} cannot be loaded: {_line(error)}",
            hint=f"`hf download {repo} --repo-type dataset --local-dir DIR` where there is a network, then data.path",
        ) from error
    _require(columns, found.column_names, repo)
    table: pa.Table = found.with_format("arrow")[:]
    table = table.select(list(columns)).replace_schema_metadata(found.features.arrow_schema.metadata)
    return _with_sources(table, [(f"{repo}, split {split}", table.num_rows)])


@contextlib.contextmanager
def _the_cache_alone_where_there_is_no_network() -> Iterator[None]:
    """Let the libraries look into their cache alone when the Hub does not answer: they would ask it for half a minute
    first, with a line of warning for each time.
    """
    import datasets
    from huggingface_hub import constants

    places: tuple[Any, ...] = (datasets.config, constants)
    before = [place.HF_HUB_OFFLINE for place in places]
    # Read anew: a dry run sets it after the libraries may have been imported.
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE") or not _hub_answers()
    try:
        for place in places:
            place.HF_HUB_OFFLINE = place.HF_HUB_OFFLINE or offline
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def _hub_answers() -> bool:
    import httpx2
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=_TIMEOUT_SECONDS)
    except (httpx2.HTTPError, OSError):
        return False
    return True


def _require(columns: Sequence[str], found: Sequence[str], source: str) -> None:
    for column in columns:
        if column not in found:
            raise DataError(
                f"{source}: there is no column {column!r}, there are {', '.join(found)}",
                hint="is it the data set that data.name says? Columns of hub:ORG/NAME and parquet are named in `data`",
                column=column,
            )


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _with_sources(table: pa.Table, sources: Sequence[tuple[str, int]]) -> pa.Table:
    return table.replace_schema_metadata({**(table.schema.metadata or {}), _SOURCES: json.dumps(sources)})


def in_words(table: pa.Table, column: str, row: int | None = None) -> str:
    """Return what messages call a column of a table, or the entry in a row, with the file that holds it."""
    sources = json.loads((table.schema.metadata or {}).get(_SOURCES, b"[]"))
    if row is None:
        files = [shown(name) for name, _ in sources]
        return f"{listed(files, ', ', 1)}: column {column!r}" if files else f"column {column!r}"
    for name, rows in sources:
        if row < rows:
            return f"{shown(name)}: column {column!r}, row {row + 1}"
        row -= rows
    return f"column {column!r}, row {row + 1}"


def values(table: pa.Table, column: str) -> np.ndarray:
    """Return a column of numbers or strings. Raises DataError when a value is missing."""
    found = table.column(column)
    if found.null_count:
        raise DataError(f"{in_words(table, column)} has {found.null_count} empty entries", column=column)
    array: np.ndarray = found.to_numpy()
    return array


def class_names(table: pa.Table, column: str) -> tuple[str, ...] | None:
    """Return the names of the classes as the table's own description of a column of labels gives them."""
    metadata = (table.schema.metadata or {}).get(b"huggingface")
    if metadata is None:
        return None
    features: dict[str, Any] = json.loads(metadata)["info"]["features"]
    names = features.get(column, {}).get("names")
    return tuple(names) if names else None


def decode(table: pa.Table, column: str, *, size: int | None = None, colour: bool | None = None) -> Pixels:
    """Decode a column of images.

    Args:
        table: The table.
        column: The column of the images.
        size: Resize the images to squares so many pixels wide.
        colour: Whether the images are to have three channels; if None, they do when any of them has colour.

    Returns:
        uint8 [examples, channels, height, width].

    Raises:
        DataError: If an entry is not an image, their sizes differ, or they need more memory than the machine has.
    """
    if colour is None:
        places = enumerate(_encoded(table, column))
        colour = any(_has_colour(encoded, partial(in_words, table, column, row)) for row, encoded in places)
    images: Pixels | None = None
    for row, encoded in enumerate(_encoded(table, column)):
        pixels = _decode(encoded, partial(in_words, table, column, row), size, colour)
        if images is None:
            _require_memory(table.num_rows * pixels.nbytes)
            images = np.empty((table.num_rows, *pixels.shape), dtype=np.uint8)
        if pixels.shape != images.shape[1:]:
            first, other = ("x".join(map(str, shape[1:])) for shape in (images.shape[1:], pixels.shape))
            place = in_words(table, column, row)
            raise DataError(f"{place}: images differ in size, {first} and {other}", hint="set data.size")
        images[row] = pixels
    return np.empty((0, 1, 1, 1), dtype=np.uint8) if images is None else images


def _require_memory(nbytes: int) -> None:
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if nbytes > there:
        raise DataError(
            f"the decoded images would take {nbytes / 1e9:.1f} GB, this machine has {there / 1e9:.1f} GB",
            hint="set data.size to make them smaller",
        )


def _encoded(table: pa.Table, column: str) -> Iterator[Any]:
    """Yield the bytes of every image file, without a copy."""
    import pyarrow as pa

    for chunk in table.column(column).chunks:
        files = chunk.field("bytes") if pa.types.is_struct(chunk.type) else chunk
        if not (pa.types.is_binary(files.type) or pa.types.is_large_binary(files.type)):
            raise DataError(f"{in_words(table, column)} holds no images", column=column)
        for scalar in files:
            if not scalar.is_valid:
                raise DataError(f"{in_words(table, column)} has entries without an image", column=column)
            yield scalar.as_buffer()


def begins_grey(table: pa.Table, column: str) -> bool:
    """Return whether the first image of a column is grey."""
    first = next(_encoded(table, column), None)
    return first is not None and not _has_colour(first, partial(in_words, table, column, 0))


def _decode(encoded: Any, place: Callable[[], str], size: int | None, colour: bool) -> Pixels:
    import PIL.Image

    with _opened(encoded, place) as image:
        picture = image.convert("RGB" if colour else "L")
        if size is not None and picture.size != (size, size):
            picture = picture.resize((size, size), PIL.Image.Resampling.BILINEAR)
        pixels = np.asarray(picture)
    return pixels.transpose(2, 0, 1) if colour else pixels[None]


def _has_colour(encoded: Any, place: Callable[[], str]) -> bool:
    with _opened(encoded, place) as image:  # which reads no more than the head of the file
        return image.mode not in ("1", "L")


@contextlib.contextmanager
def _opened(encoded: Any, place: Callable[[], str]) -> Iterator[Image]:
    """Open an image that is not too large; whatever goes wrong while it is used is that it cannot be read.

    `place` says where it is, in an error.
    """
    try:
        import PIL.Image
    except ImportError as error:
        raise DataError("decoding images needs pillow", hint=_INSTALL) from error
    try:
        # Pillow warns of large images, which the bound below refuses.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opened = PIL.Image.open(io.BytesIO(encoded))
        with opened as image:
            width, height = image.size
            if width * height > _MOST_PIXELS:
                raise DataError(f"{place()}: an image of {width}x{height} pixels is too large")
            if image.mode in ("I", "F") or image.mode.startswith("I;"):
                raise DataError(f"{place()}: more than 8 bits a pixel are not read")
            yield image
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{place()}: not an image that can be read") from error
