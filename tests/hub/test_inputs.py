"""Files, folders and models on the Hub as inputs, mixed; headers before gigabytes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hub_server import HubServer
from small_checkpoints import LINEAR, file_bytes, model, read, tree, write, write_folder, write_sharded, write_sidecars

from fedmr_merge.checkpoint.open import open_checkpoint
from fedmr_merge.errors import CheckpointError, HubError, LayerMismatchError, VerificationError
from fedmr_merge.hub.inputs import open_inputs
from fedmr_merge.lineage.trace import trace
from fedmr_merge.merging.average import average
from fedmr_merge.recombination.options import OutputOptions
from fedmr_merge.recombination.recombine import recombine
from fedmr_merge.recombination.undo import undo
from fedmr_merge.recombination.verify import verify


@pytest.fixture
def run(hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> HubServer:
    """A repository with two slots, on the endpoint that the environment names."""
    monkeypatch.chdir(tmp_path)
    hub.become_default(monkeypatch)
    files = {f"slot-{i:02d}/model.safetensors": file_bytes(model(i, LINEAR)) for i in range(2)}
    hub.add_repo("alice/run", files | {f"slot-{i:02d}/config.json": b"{}" for i in range(2)})
    return hub


def test_the_hub_and_this_machine_mix(run: HubServer, tmp_path: Path) -> None:
    local = write(tmp_path / "c" / "model.safetensors", model(2, LINEAR))
    recombine(["alice/run/slot-*", "c"], tmp_path / "out", output=OutputOptions(mean=None))
    after = [read(p) for p in sorted((tmp_path / "out").glob("slot-*"))]
    for name in LINEAR:
        assert sorted(m[name] for m in after) == sorted(model(i, LINEAR)[name] for i in range(3))
    lineage = (tmp_path / "out" / "lineage.json").read_text()
    assert f"alice/run@{run.repos['alice/run'].history()[0].oid}/slot-01" in lineage
    assert verify(tmp_path / "out").faults == []
    assert (
        undo(tmp_path / "out", tmp_path / "back").paths[2].joinpath("model.safetensors").read_bytes()
        == local.read_bytes()
    )


def test_a_mismatch_is_found_before_a_tensor_is_fetched(run: HubServer, tmp_path: Path) -> None:
    big = {"layer0.weight": ("F32", (1 << 20,), bytes(4 << 20))}
    run.add_repo("alice/other", {"model.safetensors": file_bytes(big)})
    write(tmp_path / "a.safetensors", model(0, LINEAR))
    with pytest.raises(LayerMismatchError, match="alice/other@"):
        recombine(["a.safetensors", "alice/other"], tmp_path / "out")
    assert not list((tmp_path / "hf").rglob("*.safetensors"))
    assert not (tmp_path / "out").exists()


def test_what_is_neither_here_nor_there(run: HubServer) -> None:
    with pytest.raises(HubError, match="alice/nothing"):
        open_inputs(["alice/nothing"])
    with pytest.raises(CheckpointError, match="no such file or folder"):
        open_inputs(["nothing"])


def test_what_is_here_is_not_looked_for_there(run: HubServer, tmp_path: Path) -> None:
    write(tmp_path / "alice" / "run" / "model.safetensors", model(7, LINEAR))
    assert open_inputs(["alice/run"])[0].path == Path("alice/run")
    with pytest.raises(CheckpointError, match="no such file or folder"):
        open_inputs(["alice/typing-error"])
    assert run.requests("GET", "/api/") == []


def test_folder_of_models_is_no_pipeline(tmp_path: Path) -> None:
    for name in ("model-a", "model-b"):
        write_folder(tmp_path / "models" / name, model(0), {"config.json": "{}"})
    with pytest.raises(CheckpointError, match="holds 2 models of the same tensors: model-a, model-b") as caught:
        open_inputs([tmp_path / "models"])
    assert f"{tmp_path}/models/*" in str(caught.value.hint)
    write_sidecars(tmp_path / "models", {"model_index.json": "{}"})
    assert len(open_inputs([tmp_path / "models"])[0].files) == 2, "whoever wrote that file says that it is a pipeline"


def test_components_that_differ_are_a_pipeline_without_its_index_too(tmp_path: Path) -> None:
    write_folder(tmp_path / "unet", model(0))
    write_folder(tmp_path / "vae", model(0, LINEAR))
    assert {name.partition("/")[0] for name in open_inputs([tmp_path])[0].tensors} == {"unet", "vae"}


def test_repository_of_models_is_no_pipeline(run: HubServer, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"alice/run@[0-9a-f]{40}: holds 2 models") as caught:
        open_inputs(["alice/run"])
    assert "/slot-*" in str(caught.value.hint)
    assert not list((tmp_path / "hf").rglob("*.safetensors"))


def test_what_lies_beside_a_model_of_the_hub_comes_along_or_is_told(run: HubServer) -> None:
    modules = b'[{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}]'
    weights = dict.fromkeys(
        ("model.safetensors", "value_head.safetensors", "2_Dense/model.safetensors"), file_bytes(model(0))
    )
    taken = ("tokenizer.model.v3", "additional_chat_templates/rag.jinja", "1_Pooling/config.json", "config.json")
    others = dict.fromkeys((*taken, "2_Dense/config.json", "onnx/config.json"), b"{}")
    run.add_repo("alice/sentences", weights | others | {"modules.json": modules})
    for headers_only in (True, False):
        found = open_inputs(["alice/sentences"], headers_only=headers_only)[0]
        assert found.left_out == ("value_head.safetensors",)
        assert {file.name for file in found.files} == {"model.safetensors", "2_Dense/model.safetensors"}
        configs = {name for name in found.sidecars if name.endswith("config.json")}
        assert configs == {"config.json", "1_Pooling/config.json", "2_Dense/config.json"}
    assert set(found.sidecars) == {*taken, "2_Dense/config.json", "modules.json"}


def test_modules_of_a_sentence_transformer_are_recombined_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    modules = '[{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}]'
    configs = ("config.json", "1_Pooling/config.json", "2_Dense/config.json")
    for i in range(2):
        write_folder(tmp_path / f"m{i}", model(i, LINEAR), {"modules.json": modules, **dict.fromkeys(configs, "{}")})
        dense = {f"linear.{name}": model(i, LINEAR)["layer0.weight"] for name in ("weight", "bias")}
        write_folder(tmp_path / f"m{i}" / "2_Dense", dense)
    recombine([tmp_path / "m0", tmp_path / "m1"], tmp_path / "out", output=OutputOptions())
    for name in ("slot-00", "slot-01", "global"):
        written = tmp_path / "out" / name
        assert read(written).keys() == {*LINEAR, "2_Dense/linear.weight", "2_Dense/linear.bias"}
        assert {p.relative_to(written).as_posix() for p in written.rglob("*.json")} == {"modules.json", *configs}
    after = [read(tmp_path / "out" / name)["2_Dense/linear.weight"] for name in ("slot-00", "slot-01")]
    assert sorted(after) == sorted(model(i, LINEAR)["layer0.weight"] for i in range(2))
    undo(tmp_path / "out", tmp_path / "back")
    assert tree(tmp_path / "back" / "m1") == tree(tmp_path / "m1")
    models = [str(tmp_path / "m0"), str(tmp_path / "m1"), "-o", str(tmp_path / "again")]
    for options in (["--layout", "store"], ["--max-shard-size", "50B"]):
        assert command("recombine", *models, *options) == 2
        assert "the module 2_Dense is loaded from one file, model.safetensors, and not from" in capsys.readouterr().err


def test_a_stale_index_is_not_written_and_is_restored(tmp_path: Path) -> None:
    for i in range(2):
        write_sharded(tmp_path / f"m{i}", model(i, LINEAR), sidecars={"config.json": "{}"})
        index = tmp_path / f"m{i}" / "model.safetensors.index.json"
        index.write_text(index.read_text().replace("layer0.weight", "gone"))
    recombine([tmp_path / "m0", tmp_path / "m1"], tmp_path / "out")
    assert open_checkpoint(tmp_path / "m0").stale_indexes
    for name in ("slot-00", "slot-01", "global"):
        assert not open_checkpoint(tmp_path / "out" / name).stale_indexes
    undo(tmp_path / "out", tmp_path / "back")
    assert tree(tmp_path / "back" / "m1") == tree(tmp_path / "m1")


def test_checkpoints_pass(tmp_path: Path) -> None:
    opened = open_checkpoint(write(tmp_path / "a.safetensors", model(0)))
    assert open_inputs([opened, tmp_path / "a.safetensors"])[0] is opened


def command(*arguments: str) -> int:
    from fedmr_merge.cli import main

    with pytest.raises(SystemExit) as done:
        main(list(arguments))
    assert isinstance(done.value.code, int)
    return done.value.code


@pytest.mark.parametrize("arguments", [["recombine"], ["average"], ["plan"], ["inspect"]], ids=lambda a: a[0])
@pytest.mark.parametrize("part", ["", "/model.safetensors"])
def test_what_is_in_the_cache_is_there_without_a_network(
    arguments: list[str], part: str, run: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    models = [f"alice/run@{run.repos['alice/run'].history()[0].oid}/slot-0{i}{part}" for i in range(2)]
    assert command("recombine", *models) == 0
    asked = len(run.log)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    named = models[:1] if arguments == ["inspect"] else models
    out = [] if arguments[0] in ("plan", "inspect") else ["-o", "again"]
    assert command(*arguments, *named, *out) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert command("plan", "alice/run/slot-00", "alice/run/slot-01") == 2
    assert f"hint: write {models[0].removesuffix('/model.safetensors')}\n" in capsys.readouterr().err
    assert len(run.log) == asked
    if out:  # no card was looked at: nothing may be said of what it states
        recorded = [json.loads(Path(name, "lineage.json").read_text())["sources"] for name in ("recombined", "again")]
        assert [["license" in source for source in sources] for sources in recorded] == [[True] * 2, [False] * 2]


@pytest.mark.parametrize(
    "arguments", [["plan"], ["recombine", "--dry-run"], ["inspect"], ["rules", "explain"]], ids=lambda a: a[0]
)
def test_looking_fetches_no_weights(
    arguments: list[str], run: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = ["alice/run/slot-00"] if arguments[0] in ("inspect", "rules") else ["alice/run/slot-*"]
    assert command(*arguments, *models) == 0
    assert "layer0" in capsys.readouterr().out
    assert not list((tmp_path / "hf").rglob("*.safetensors"))


def test_plan_tells_what_does_not_match(run: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {f"slot-{i:02d}/model.safetensors": file_bytes(model(i, LINEAR)) for i in range(2)}
    configs = {f"slot-{i:02d}/config.json": f'{{"heads": {i}}}'.encode() for i in range(2)}
    run.add_repo("alice/heads", files | configs)
    assert command("plan", "alice/heads/slot-*") == 2
    assert "config.json: heads: expected 0, found 1" in capsys.readouterr().err
    assert not list((tmp_path / "hf").rglob("*.safetensors"))


def test_the_licence_of_a_parent_is_in_the_lineage(run: HubServer, tmp_path: Path) -> None:
    card = b"---\nlicense: apache-2.0\n---\n"
    run.add_repo("alice/free", {"model.safetensors": file_bytes(model(3, LINEAR)), "README.md": card})
    write(tmp_path / "a.safetensors", model(0, LINEAR))
    recombine(["alice/free", "a.safetensors"], tmp_path / "out", output=OutputOptions(mean=None))
    sources = json.loads((tmp_path / "out" / "lineage.json").read_text())["sources"]
    assert [source.get("license") for source in sources] == ["apache-2.0", None]
    assert "license" not in sources[1]


def test_the_inputs_to_verify_against_may_be_on_the_hub(run: HubServer, tmp_path: Path) -> None:
    recombine(["alice/run/slot-*"], tmp_path / "out", output=OutputOptions(mean=None))
    shutil.rmtree(tmp_path / "hf")
    assert verify(tmp_path / "out").skipped, "the lineage alone does not make anything be fetched"
    with pytest.raises(VerificationError, match="1 input was given, the recombination had 2") as caught:
        verify(tmp_path / "out", ["alice/run/slot-00"])
    assert caught.value.hint == "name all 2 with --against, in the order of their slots"
    with pytest.raises(VerificationError, match="3 inputs were given"):
        verify(tmp_path / "out", ["alice/run/slot-00", "alice/run/slot-*"])
    assert not list((tmp_path / "hf").rglob("*.safetensors")), "that is found before gigabytes are fetched"
    for against in (["alice/run/slot-00", "alice/run/slot-01"], ["alice/run/slot-*"]):
        result = verify(tmp_path / "out", against)
        assert (result.faults, result.skipped) == ([], [])


def test_the_inputs_of_an_average_to_verify_against_may_be_a_glob(run: HubServer, tmp_path: Path) -> None:
    average(["alice/run/slot-*"], tmp_path / "mean")
    with pytest.raises(VerificationError, match="4 inputs were given, the average had 2"):
        verify(tmp_path / "mean", ["alice/run/slot-*", "alice/run/slot-*"])
    assert "it is the mean of the inputs, byte for byte" in verify(tmp_path / "mean", ["alice/run/slot-*"]).proved


@pytest.mark.parametrize("hashed", [True, False])
@pytest.mark.parametrize("part", ["slot-*", "slot-*/model.safetensors"])
def test_inputs_of_the_hub_are_looked_for_in_the_cache_and_nowhere_else(
    part: str, hashed: bool, run: HubServer, tmp_path: Path
) -> None:
    recombine([f"alice/run/{part}"], tmp_path / "out", output=OutputOptions(hash=hashed))
    asked = len(run.log)
    before = (tmp_path / "out" / "lineage.json").read_bytes()
    result = verify(tmp_path / "out")
    assert (result.faults, result.skipped, result.warnings) == ([], [], [])
    assert "the outputs hold the inputs' tensors, each byte for byte" in result.proved
    (tmp_path / "out" / "lineage.json").write_bytes(before)
    (cached,) = (tmp_path / "hf").glob("**/snapshots/*/slot-01/model.safetensors")
    cached.unlink()
    name = f"alice/run@{run.repos['alice/run'].history()[0].oid}/{part.replace('*', '01')}"
    words = f"{name} is not in this machine's cache of the Hub; it is fetched where `--against` names all inputs"
    if hashed:
        assert verify(tmp_path / "out").skipped == [f"comparison with the inputs: {words}"]
    else:
        (fault,) = verify(tmp_path / "out").faults
        assert fault.endswith(f"no SHA-256 of them is recorded, and {words}")
    assert len(run.log) == asked
    assert trace(tmp_path / "out", "layer0.weight")[0][0].place.startswith("alice/run@")
    verify(tmp_path / "out", [name.replace("slot-01", "slot-00"), name])
    assert verify(tmp_path / "out").skipped == []


def test_a_local_path_with_an_at_sign_is_no_hub_id(tmp_path: Path) -> None:
    paths = [write(tmp_path / "me@home" / name, model(i, LINEAR)) for i, name in enumerate(("a.safetensors", "b@1"))]
    named = [paths[0], paths[1].rename(paths[1].with_name("b@1.safetensors"))]
    recombine(named, tmp_path / "out", output=OutputOptions(mean=None))
    assert [path.name for path in undo(tmp_path / "out", tmp_path / "back").paths] == [path.name for path in named]
    assert {chain[0].place for chain in trace(tmp_path / "out", "layer0.weight")} == set(map(str, named))
    named[0].unlink()
    assert {chain[0].place for chain in trace(tmp_path / "out", "layer0.weight")} == set(map(str, named))


@pytest.mark.parametrize(
    "arguments",
    [
        ["recombine", "--rule", "nope"],
        ["recombine", "--rule", "none.yaml"],
        ["recombine", "--rule", "segments:999"],
        ["recombine", "--rule", "equal.yaml"],
        ["recombine", "--pin", "nope"],
        ["recombine", "--slots", "9"],
        ["recombine", "--weights", "1"],
        ["recombine", "--plan", "plan.json"],
        ["recombine", "--sidecars-from", "5"],
        ["recombine", "--probability", "7"],
        ["recombine", "--out-dtype", "I8"],
        ["recombine", "--max-memory", "1MB"],
        ["recombine", "-o", "plan.json/out"],
        ["average", "--weights", "1"],
        ["average", "--max-memory", "1kB"],
        ["average", "-o", "plan.json/out"],
        ["average", "-o", "mean.safetensors", "--max-shard-size", "1B"],
    ],
    ids=" ".join,
)
def test_what_headers_can_tell_is_told_before_a_tensor_is_fetched(
    arguments: list[str], run: HubServer, tmp_path: Path
) -> None:
    configs = {f"slot-{i:02d}/generation_config.json": f'{{"eos_token_id": {i}}}'.encode() for i in range(2)}
    files = {f"slot-{i:02d}/model.safetensors": file_bytes(model(i, LINEAR)) for i in range(2)}
    run.add_repo("alice/run", files | configs)
    (tmp_path / "plan.json").write_text('{"format_version": 1, "slots": 3, "permutations": {}}')
    rules = 'rules: [{match: "**", group: all}]\nrequire_equal: {generation_config.json: [eos_token_id]}\n'
    (tmp_path / "equal.yaml").write_text(rules)
    assert command(*arguments, "alice/run/slot-*") == 2
    assert not list((tmp_path / "hf").rglob("*.safetensors"))
    assert command("recombine", "alice/run/slot-*", "--layout", "store") == 0, "nothing else is wrong with them"


def test_files_that_a_rule_compares_are_fetched(
    run: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(2):
        config = f'{{"eos_token_id": {i}}}'.encode()
        run.add_repo(f"alice/m{i}", {"model.safetensors": file_bytes(model(i)), "generation_config.json": config})
    rules = 'rules: [{match: "**", group: all}]\nrequire_equal: {generation_config.json: [eos_token_id]}\n'
    (tmp_path / "r.yaml").write_text(rules)
    assert command("rules", "check", "r.yaml", "alice/m0", "alice/m1") == 0
    for arguments in (["recombine", "--dry-run"], ["plan"]):
        assert command(*arguments, "--rule", "r.yaml", "alice/m0", "alice/m1") == 2
        assert "generation_config.json: eos_token_id: expected 0, found 1" in capsys.readouterr().err


@pytest.mark.parametrize("equal", [True, False])
def test_a_plan_is_not_final_before_the_bytes_of_what_may_be_tied_are_here(
    equal: bool, run: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("model.embed_tokens.weight", "lm_head.weight")
    for i in range(2):
        raws = [model(i if equal else 10 * i + j, LINEAR)["layer0.weight"] for j in range(2)]
        tensors = dict(zip(names, raws, strict=True))
        run.add_repo(f"alice/m{i}", {"model.safetensors": file_bytes(tensors), "config.json": b"{}"})
    models = ["alice/m0", "alice/m1", "--rule", "tensor"]
    words = "model.embed_tokens.weight and lm_head.weight will move as one if their bytes are equal"
    for arguments in (["recombine", "--dry-run"], ["plan"]):
        assert command(*arguments, *models) == 0
        assert capsys.readouterr().out.count(words) == 1
    assert command("recombine", *models, "--dry-run", "--save-plan", "plan.json") == 2
    told = capsys.readouterr().err.splitlines()
    assert words in told[0]
    assert "lineage.json" in told[1]
    assert not (tmp_path / "plan.json").exists()
    assert command("recombine", *models, "-o", "out") == 0
    groups = json.loads((tmp_path / "out" / "lineage.json").read_text())["groups"]
    assert len(groups) == (1 if equal else 2)
    assert command("recombine", *models, "--plan", "out/lineage.json", "-o", "again") == 0, "a plan that knows"
    assert command("recombine", "alice/m0", "alice/m1", "--rule", "model", "--dry-run", "--save-plan", "p.json") == 0
    config = '{"tie_word_embeddings": false}'
    write_folder(tmp_path / "here", {names[0]: raws[0], names[1]: raws[0]}, {"config.json": config})
    write_folder(tmp_path / "there", {names[0]: raws[0], names[1]: model(9, LINEAR)["layer1.weight"]})
    assert command("recombine", *models, "there", "--dry-run", "--save-plan", "q.json") == 0, "one is known to differ"
    assert command("recombine", *models, "here", "--dry-run", "--save-plan", "r.json") == 2


def test_a_model_that_is_named_twice_by_two_names_is_told(
    run: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run.add_repo("alice/m", {"model.safetensors": file_bytes(model(0)), "config.json": b"{}"})
    write_folder(tmp_path / "here", model(0))
    (tmp_path / "link").symlink_to("here")
    for twice in (
        ("alice/m", "alice/m@main"),
        ("alice/m", "alice/m/model.safetensors"),
        ("here", "here/model.safetensors"),
        ("link", "here"),
    ):
        for arguments in (["recombine"], ["average"], ["plan"]):
            assert command(*arguments, *twice) == 2
            assert "named twice, as model 0 and model 1" in capsys.readouterr().err
    assert not list((tmp_path / "hf").rglob("*.safetensors"))
    assert command("recombine", "alice/m", "here") == 0, "two copies are two models"


def test_files_of_a_repository_that_stay_behind_are_told(
    run: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = ("bpe.codes", "source.spm", "scales.dat", "handler.py", "README.md", "a.png", "onnx/x.dat", "adam.pt")
    for i in range(2):
        run.add_repo(f"alice/m{i}", {"model.safetensors": file_bytes(model(i)), **dict.fromkeys(others, b"x")})
    for arguments in (["plan"], ["recombine", "-o", "out"]):
        assert command(*arguments, "alice/m0", "alice/m1") == 0
        told = [line for line in capsys.readouterr().err.splitlines() if "not copied" in line]
        assert len(told) == 1
        assert told[0].startswith("warning: handler.py, scales.dat of alice/m0@")
    written = {path.name for path in (tmp_path / "out" / "slot-00").iterdir()}
    assert written == {"model.safetensors", "bpe.codes", "source.spm"}
