"""The header reader: agrees with the `safetensors` package on what is valid, and says what is wrong."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from small_checkpoints import MIXED, file_bytes, floats, model

from fedmr_merge.checkpoint.header import build_header, header_length, parse_header, read_header
from fedmr_merge.checkpoint.header_json import DTYPE_BITS
from fedmr_merge.errors import CheckpointError

FILE = Path("model.safetensors")


def raw(text: str | bytes, data: bytes = b"") -> bytes:
    content = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(content)) + content + data


def ours(content: bytes) -> str | None:
    """None where the file is valid, else what is wrong with it."""
    try:
        length = header_length(content[:8], FILE, len(content))
        parse_header(content[: 8 + length], FILE, len(content))
    except CheckpointError as error:
        return error.reason
    return None


def theirs(content: bytes, path: Path) -> str | None:
    path.write_bytes(content)
    try:
        with safe_open(str(path), "np") as opened:
            opened.keys()
    except (SafetensorError, ValueError, OSError) as error:
        return str(error)
    return None


def entry(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def header(**tensors: Any) -> str:
    return json.dumps(tensors)


FAULTS = {
    "empty": b"",
    "short": b"\x08\x00\x00",
    "huge": struct.pack("<Q", 1 << 60) + b"{}",
    "over the limit": struct.pack("<Q", 100_000_001) + b"{}",
    "beyond the file": struct.pack("<Q", 100) + b"{}",
    "no JSON": raw("{"),
    "not an object": raw("[]"),
    "nested": raw("[" * 3000 + "]" * 3000),
    "not UTF-8": raw(b'{"\xff": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}'),
    "lone surrogate": raw('{"\\ud800": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}'),
    "trailing text": raw("{} x"),
    "byte order mark": raw("\ufeff{}"),
    "NaN": raw('{"a": NaN}'),
    "metadata list": raw('{"__metadata__": []}'),
    "metadata zero": raw('{"__metadata__": 0}'),
    "metadata number": raw('{"__metadata__": {"a": 1}}'),
    "unknown dtype": raw(header(a=entry("F33")), bytes(4)),
    "lower-case dtype": raw(header(a=entry("f32")), bytes(4)),
    "dtype a number": raw(header(a=entry(32)), bytes(4)),  # type: ignore[arg-type]
    "no dtype": raw('{"a": {"shape": [1], "data_offsets": [0, 4]}}', bytes(4)),
    "negative shape": raw(header(a=entry(shape=[-1])), bytes(4)),
    "minus zero": raw('{"a": {"dtype": "F32", "shape": [-0], "data_offsets": [0, 0]}}'),
    "float shape": raw(header(a=entry(shape=[1.0])), bytes(4)),
    "true shape": raw(header(a=entry(shape=[True])), bytes(4)),
    "nested shape": raw(header(a=entry(shape=[[1]])), bytes(4)),
    "shape too large for 64 bits": raw(header(a=entry(shape=[1 << 64, 0], offsets=[0, 0]))),
    "shape overflows": raw(header(a=entry(shape=[1 << 63, 4, 0], offsets=[0, 0]))),
    "bits overflow": raw(header(a=entry(shape=[1 << 62], offsets=[0, 0]))),
    "three offsets": raw(header(a=entry(offsets=[0, 4, 4])), bytes(4)),
    "offsets backwards": raw(header(a=entry(shape=[0], offsets=[4, 0])), bytes(4)),
    "wrong size": raw(header(a=entry(shape=[2])), bytes(4)),
    "half a byte": raw(header(a=entry("F4", [1], [0, 0]))),
    "overlap": raw(header(a=entry(shape=[2], offsets=[0, 8]), b=entry(offsets=[4, 8])), bytes(8)),
    "same bytes twice": raw(header(a=entry(), b=entry()), bytes(4)),
    "gap": raw(header(a=entry(), b=entry(offsets=[8, 12])), bytes(12)),
    "starts late": raw(header(a=entry(offsets=[4, 8])), bytes(8)),
    "truncated": raw(header(a=entry()), bytes(3)),
    "bytes left over": raw(header(a=entry()), bytes(5)),
    "empty inside another": raw(header(a=entry(), b=entry(shape=[0], offsets=[2, 2])), bytes(4)),
}
VALID = {
    "no tensor": raw("{}"),
    "metadata null": raw('{"__metadata__": null}'),
    "metadata": raw('{"__metadata__": {"format": "pt", "": ""}}'),
    "padded": raw("  {}  \n\t "),
    "scalar": raw(header(a=entry(shape=[])), bytes(4)),
    "zero size": raw(header(a=entry(shape=[0, 1 << 63, 2], offsets=[0, 0]))),
    "zero size at the end": raw(header(a=entry(shape=[0], offsets=[4, 4]), b=entry()), bytes(4)),
    "zero size before": raw(header(a=entry(shape=[0], offsets=[0, 0]), b=entry()), bytes(4)),
    "any order": raw(header(a=entry(offsets=[4, 8]), b=entry()), bytes(8)),
    "any name": raw(header(**{"": entry(), "\n\x7f\u0080 ü😀": entry(offsets=[4, 8])}), bytes(8)),
    "escaped pair": raw('{"\\ud83d\\ude00": {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}}', bytes(4)),
    **{d: raw(header(a=entry(d, [8], [0, bits])), bytes(bits)) for d, bits in DTYPE_BITS.items()},
}
#: What `safetensors` takes and this reader refuses, as its docstring says.
STRICTER = {
    "name twice": raw('{"a": %s, "a": %s}' % ((json.dumps(entry()),) * 2), bytes(4)),
    "metadata name twice": raw('{"__metadata__": {"a": "b", "a": "c"}}'),
    "entry an array": raw('{"a": ["F32", [1], [0, 4]]}', bytes(4)),
    "dtype an object": raw('{"a": {"dtype": {"F32": null}, "shape": [1], "data_offsets": [0, 4]}}', bytes(4)),
    "unknown key": raw(header(a={**entry(), "strides": [1]}), bytes(4)),
}


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_refused_by_both(name: str, tmp_path: Path) -> None:
    assert ours(FAULTS[name]) is not None
    assert theirs(FAULTS[name], tmp_path / "x.safetensors") is not None


@pytest.mark.parametrize("name", VALID)
def test_valid_is_accepted_by_both(name: str, tmp_path: Path) -> None:
    assert ours(VALID[name]) is None
    assert theirs(VALID[name], tmp_path / "x.safetensors") is None


@pytest.mark.parametrize("name", STRICTER)
def test_what_is_stricter_here(name: str, tmp_path: Path) -> None:
    assert ours(STRICTER[name]) is not None
    assert theirs(STRICTER[name], tmp_path / "x.safetensors") is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("huge", "claims 1152921504606846976 bytes, the limit is 100000000"),
        ("beyond the file", "truncated: the header ends at byte 108, the file has 10"),
        ("not UTF-8", "not valid UTF-8"),
        ("unknown dtype", "tensor 'a': unknown dtype 'F33'"),
        ("overlap", "tensor 'b' overlaps the tensor before it"),
        ("gap", "tensor 'b' leaves a gap before it"),
        ("truncated", "truncated: the tensors end at byte"),
        ("bytes left over", "1 bytes after the last tensor"),
        ("wrong size", "F32 [2] takes 8 bytes, data_offsets give 4"),
    ],
)
def test_messages_name_the_culprit(name: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(FAULTS[name])
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert words in caught.value.reason
    assert len(str(caught.value)) < 500


def test_long_values_are_shortened_in_messages() -> None:
    reason = ours(raw(header(a=entry(shape=[1.5] * 100_000)), bytes(4)))
    assert reason is not None
    assert len(reason) < 300


def test_a_header_of_countless_lists_is_refused_before_it_is_parsed() -> None:
    content = raw(b'{"a": [' + b"[]," * 6_600_000 + b"[]]}")
    before = time.process_time()
    assert "more lists and objects than any valid one" in str(ours(content))
    assert time.process_time() - before < 2


NUMBERS = st.one_of(st.integers(-2, 20), st.sampled_from([1 << 32, 1 << 63, (1 << 64) - 1, 1 << 64]), st.floats())
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPE_BITS, "F32", "F32", "x"]),
        "shape": st.lists(st.integers(0, 3), max_size=3) | st.lists(NUMBERS, max_size=3),
        "data_offsets": st.lists(st.integers(0, 24), min_size=2, max_size=2) | st.lists(NUMBERS, max_size=3),
    }
)
NAMES = st.text(max_size=3)


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(NAMES, ENTRIES, max_size=3), st.integers(0, 30), st.booleans())
def test_random_headers_are_judged_alike(
    tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Any], size: int, escaped: bool
) -> None:
    text = json.dumps(tensors, ensure_ascii=escaped)
    content = raw(text.encode("utf-8", "surrogatepass"), bytes(size))
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    assert (ours(content) is None) == (theirs(content, path) is None), text


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_files_are_judged_alike(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content = bytearray(file_bytes({"a": floats([1, 2]), "b.weight": floats([[3]])}, {"format": "pt"}))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    mine, other = ours(bytes(content)), theirs(bytes(content), path)
    if mine is None:
        assert other is None
    elif other is None:  # stricter on purpose, never by accident
        assert "twice" in mine or "its entry" in mine, mine


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    ours(content)


def test_entries_are_in_the_order_of_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw(header(b=entry(offsets=[4, 8]), a=entry()), b"aaaabbbb"))
    found = read_header(path)
    assert list(found.tensors) == ["a", "b"]
    assert [path.read_bytes()[e.start : e.end] for e in found.tensors.values()] == [b"aaaa", b"bbbb"]
    assert path.read_bytes()[found.data_start :] == b"aaaabbbb"
    assert found.identity is not None


def test_reads_what_safetensors_writes(tmp_path: Path) -> None:
    import numpy as np

    arrays = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "y": np.zeros((), np.int64)}
    save_file(arrays, tmp_path / "x.safetensors", metadata={"k": "v"})
    found = read_header(tmp_path / "x.safetensors")
    assert {n: (e.dtype, e.shape) for n, e in found.tensors.items()} == {"x": ("F32", (2, 3)), "y": ("I64", ())}
    assert found.metadata == {"k": "v"}


def test_written_headers_are_valid_and_aligned(tmp_path: Path) -> None:
    tensors = [(n, d, s, len(r)) for n, (d, s, r) in model(0).items()]
    for metadata in (None, {"ü": "xxx"}):
        built = build_header(tensors, metadata)
        assert len(built) % 8 == 0
        content = built + b"".join(r for _, _, r in model(0).values())
        assert theirs(content, tmp_path / "x.safetensors") is None
        found = parse_header(built, FILE, len(content))
        assert {n: (e.dtype, e.shape) for n, e in found.tensors.items()} == dict(MIXED)
        assert found.metadata == (metadata or {})


def test_a_hundred_thousand_tensors_open_in_seconds(tmp_path: Path) -> None:
    tensors = [(f"layers.{i}.weight", "F32", (1,), 4) for i in range(100_000)]
    built = build_header(tensors)
    path = tmp_path / "x.safetensors"
    path.write_bytes(built + bytes(400_000))
    before = time.process_time()
    assert len(read_header(path).tensors) == 100_000
    assert time.process_time() - before < 20


def test_a_name_that_stands_twice_among_many_is_found_at_once() -> None:
    pairs = [json.dumps(f"n{i}") + ": " + json.dumps(entry(offsets=[4 * i, 4 * i + 4])) for i in range(20_000)]
    content = raw("{" + ", ".join([*pairs, '"n19999": {}']) + "}", bytes(80_000))
    before = time.process_time()
    assert "'n19999' twice" in str(ours(content))
    assert time.process_time() - before < 5


@pytest.mark.parametrize("what", ["absent", "folder"])
def test_what_cannot_be_opened(what: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    if what == "folder":
        path.mkdir()
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_header(path)
