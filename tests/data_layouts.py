"""Small data sets in the layouts of the large ones, made by the tests that read them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def pictures(count: int, shape: tuple[int, ...] = (32, 32, 3), seed: int = 0, labels: Any = None) -> np.ndarray:
    """Random images [count, height, width(, 3)], brighter with the label."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 156, size=(count, *shape))
    if labels is not None:
        pixels += (np.asarray(labels) * 99 // max(1, max(labels))).reshape(-1, *[1] * len(shape))
    return pixels.astype(np.uint8)


def encoded(image: np.ndarray, kind: str = "PNG") -> bytes:
    """Return the bytes of an image file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def write_parquet(file: Path, columns: dict[str, Any], names: dict[str, tuple[str, ...]] | None = None) -> None:
    """Write a table as the Hub does. Arrays of images become files; `names` are the classes of columns of labels."""
    arrays, features = {}, {}
    for column, values in columns.items():
        if isinstance(values, np.ndarray) and values.ndim > 1:
            arrays[column] = pa.array([{"bytes": encoded(image), "path": None} for image in values])
            features[column] = {"_type": "Image"}
        else:
            arrays[column] = pa.array(values)
            features[column] = {"dtype": str(arrays[column].type), "_type": "Value"}
    for column, classes in (names or {}).items():
        features[column] = {"names": list(classes), "_type": "ClassLabel"}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if names else None
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(arrays).replace_schema_metadata(metadata), file, row_group_size=7)


def write_cifar10(folder: Path, train: int = 60, test: int = 20) -> None:
    """Write a CIFAR-10 in the layout of uoft-cs/cifar10."""
    for seed, (split, count) in enumerate((("train", train), ("test", test))):
        labels = np.arange(count) % 10
        columns = {"img": pictures(count, seed=seed, labels=labels), "label": labels}
        write_parquet(folder / "plain_text" / f"{split}-00000-of-00001.parquet", columns, {"label": CIFAR10})


def write_cifar100(folder: Path, train: int = 100, test: int = 20) -> None:
    """Write a CIFAR-100 in the layout of uoft-cs/cifar100."""
    fine, coarse = (tuple(f"{kind} {label}" for label in range(n)) for kind, n in (("fine", 100), ("coarse", 20)))
    for seed, (split, count) in enumerate((("train", train), ("test", test))):
        labels = np.arange(count) % 100
        columns = {"img": pictures(count, seed=seed, labels=labels), "fine_label": labels, "coarse_label": labels // 5}
        names = {"fine_label": fine, "coarse_label": coarse}
        write_parquet(folder / "cifar100" / f"{split}-00000-of-00001.parquet", columns, names)


def write_femnist(folder: Path, sizes: dict[str, int]) -> None:
    """Write a FEMNIST in the layout of flwrlabs/femnist, with so many examples of each writer."""
    writers = [writer for writer, size in sizes.items() for _ in range(size)]
    order = np.random.default_rng(1).permutation(len(writers))
    labels = np.arange(len(writers)) % 62
    columns = {
        "image": pictures(len(writers), (28, 28), labels=labels),
        "writer_id": [writers[place] for place in order],
        "hsf_id": [0] * len(writers),
        "character": labels,
    }
    names = tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
    write_parquet(folder / "data" / "train-00000-of-00001.parquet", columns, {"character": names})
