"""Every private name of huggingface_hub and torch that the package uses: one that goes in a new version shows here."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name

import pytest

import fedmr_merge

#: Private name → why there is no public one.
PRIVATE = {
    "huggingface_hub.utils._http._CLIENT_LOCK": "guards the two below",
    "huggingface_hub.utils._http._GLOBAL_CLIENT": "set_client_factory closes the client that others use",
    "huggingface_hub.utils._http._GLOBAL_CLIENT_FACTORY": "it can be set, and not be read",
    "huggingface_hub.utils._http.hf_request_event_hook": "keeps offline mode and lets the Hub count downloads",
    "huggingface_hub.utils._runtime.is_xet_available": "says whether files would go by xet",
    "torch._C._functorch._add_batch_dim": "makes a stacked tensor that of all clients, within vmap",
    "torch._C._functorch._unwrap_batched": "gives the stacked tensor of all clients, within vmap",
    "torch._C._functorch.is_batchedtensor": "says whether a tensor is that of all clients, within vmap",
    "torch._dynamo.config": "has the limit of what is compiled, beyond which torch compiles nothing more",
    "torch._functorch.pyfunctorch.VmapInterpreter": "says whether vmap, or another transformation, is the innermost",
    "torch._functorch.pyfunctorch.retrieve_current_functorch_interpreter": "leaves vmap while an operation is computed",
    "torch._foreach_add_": "counts the batches of all normalisations in one kernel",
    "torch._fused_adam_": "a step of Adam over all clients in one kernel",
    "torch._fused_adamw_": "a step of AdamW over all clients in one kernel",
    "torch._fused_sgd_": "a step of SGD over all clients in one kernel",
    "torch.ops.aten._unsafe_view": "another shape that autograd does not take for a view",
    "torch.utils._python_dispatch.TorchDispatchMode": "sees every operation, without importing the compiler",
    "torch.nn.modules.batchnorm._BatchNorm": "the base of all batch normalisations",
    "torch.nn.modules.batchnorm._NormBase": "the base of all layers with running statistics",
}
_LIBRARIES = ("huggingface_hub", "torch", "torchvision")


def _is_private(dotted: str) -> bool:
    parts = dotted.split(".")
    return parts[0] in _LIBRARIES and any(part.startswith("_") and not part.startswith("__") for part in parts)


def _dotted(node: ast.expr, names: dict[str, str]) -> str:
    """`hf_http._CLIENT_LOCK` by what `hf_http` was imported as; nothing for other expressions."""
    if isinstance(node, ast.Name):
        return names.get(node.id, "")
    if isinstance(node, ast.Attribute) and (inner := _dotted(node.value, names)):
        return f"{inner}.{node.attr}"
    return ""


def private_names(source: str) -> Iterator[str]:
    nodes = list(ast.walk(ast.parse(source)))
    names: dict[str, str] = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                names[alias.asname or top] = alias.name if alias.asname else top
                yield alias.name
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                yield f"{node.module}.{alias.name}"
    for node in nodes:
        if isinstance(node, ast.Attribute):
            yield _dotted(node, names)


def used() -> set[str]:
    files = Path(fedmr_merge.__file__).parent.rglob("*.py")
    found = {name for file in files for name in private_names(file.read_text(encoding="utf-8")) if _is_private(name)}
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)}


def test_every_private_name_is_listed() -> None:
    assert used() == PRIVATE.keys()


@pytest.mark.parametrize("name", PRIVATE)
def test_a_private_name_is_there(name: str) -> None:
    resolve_name(name)  # raises where there is none


def test_the_walk_finds_what_it_should() -> None:
    source = "import torch as t\nfrom huggingface_hub.utils import _http as h\nt._a._b()\nh._c = 1\nx._d\nt.__name__\n"
    found = set(filter(_is_private, private_names(source)))
    assert found == {"huggingface_hub.utils._http", "huggingface_hub.utils._http._c", "torch._a", "torch._a._b"}
