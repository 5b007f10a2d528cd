"""`repo` of `text` and `tabular`: tables of the Hub, from a Hub of the test's own, in a process of its own."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import HubServer

pytest.importorskip("datasets")

TRAIN = [{"story": f"tale {i}", "kind": "ab"[i % 2], "who": f"w{i % 3}", "x": i / 2, "y": float(i)} for i in range(12)]
TEST = TRAIN[:4]
WORDS = {"story": "no other file of the repository is read", "kind": "z", "who": "w9", "x": 0.0, "y": 0.0}

#: Loads what each line of the input describes; prints what was found, or the one line that a user would see.
LOAD = """
import json, sys
from fedmr_merge.errors import DataError
from fedmr_merge.federated.data.datasets.tabular import Tabular
from fedmr_merge.federated.data.datasets.text import Text

for line in sys.stdin:
    kind, options = json.loads(line)
    try:
        data = (Text if kind == "text" else Tabular)(**options).load()
    except DataError as error:
        print(json.dumps({"error": str(error), "hint": error.hint}))
        continue
    parts = {}
    for part in ("train", "test"):
        inputs = data.inputs(part, slice(None))
        inputs = inputs["input_ids"] if isinstance(inputs, dict) else inputs
        parts[part] = [inputs.tolist(), data.targets(part).tolist()]
    clients = None if data.train_clients is None else data.train_clients.tolist()
    print(json.dumps({"parts": parts, "classes": data.class_names, "clients": clients}))
"""

TEXT = {"text_column": "story", "label_column": "kind", "client_column": "who", "length": 8}
TABLE = {"target": "y", "predict": "number", "features": ["x"]}


def parquet(rows: list[dict[str, Any]]) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream)
    return stream.getvalue()


def load(home: Path, endpoint: str, *asked: tuple[str, dict[str, Any]]) -> list[dict[str, Any]]:
    environment = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home)}
    lines = "".join(json.dumps(one) + "\n" for one in asked)
    done = subprocess.run(
        [sys.executable, "-c", LOAD], env=environment, input=lines, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_rows_of_the_hub_are_those_of_the_same_files_on_disk(hub: HubServer, tmp_path: Path) -> None:
    folder = tmp_path / "local"
    folder.mkdir()
    for split, rows in (("train", TRAIN), ("test", TEST)):
        (folder / f"{split}.parquet").write_bytes(parquet(rows))
    files = {
        f"data/{split}-00000-of-00001.parquet": parquet(rows) for split, rows in (("train", TRAIN), ("test", TEST))
    }
    hub.add_repo("alice/tales", files)
    configs = [
        {"config_name": name, "data_files": [{"split": "everything", "path": f"{name}/*.parquet"}]}
        for name in ("first", "second")
    ]
    card = f"---\nconfigs: {json.dumps(configs)}\n---\n"
    named = {"README.md": card.encode(), "first/a.parquet": parquet([WORDS]), "second/a.parquet": parquet(TRAIN)}
    hub.add_repo("alice/configured", named)
    second = {"config": "second", "train_split": "everything", "test_split": None, "test_share": 0.25}
    asked = (
        ("text", {**TEXT, "repo": "alice/tales"}),
        ("text", {**TEXT, "path": str(folder)}),
        ("tabular", {**TABLE, "repo": "alice/tales"}),
        ("tabular", {**TABLE, "path": str(folder)}),
        ("text", {**TEXT, "repo": "alice/configured", **second}),
        ("text", {**TEXT, "repo": "alice/tales", "label_column": "sort"}),
        ("text", {**TEXT, "repo": "alice/absent"}),
    )
    text, local_text, table, local_table, configured, column, absent = load(tmp_path / "hf", hub.endpoint, *asked)
    assert text == local_text
    assert text["classes"] == ["a", "b"]
    assert text["clients"] == [i % 3 for i in range(12)]
    assert bytes(text["parts"]["train"][0][3][:6]) == b"tale 3"
    assert table == local_table
    assert table["parts"]["train"][1] != table["parts"]["test"][1]
    assert (len(configured["parts"]["train"][1]), len(configured["parts"]["test"][1])) == (9, 3)
    assert column["error"] == "alice/tales: there is no column 'sort', there are story, kind, who, x, y"
    assert absent["error"].startswith("the Hub's data set alice/absent cannot be loaded: ")
    assert "data.path" in absent["hint"]
    # What has been fetched is there without the Hub.
    endpoint = hub.endpoint
    hub.__exit__()
    [again] = load(tmp_path / "hf", endpoint, asked[0])
    assert again == text
