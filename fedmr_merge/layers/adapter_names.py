"""The factors of adapters, by the names that libraries write.

    q.lora_A.weight, q.lora_embedding_B, q.lora_E       PEFT, with or without the adapter's name at the end
    q.lora_down.weight, q.hada_w1_a, q.lokr_w1          kohya and LyCORIS
    q.lora.down.weight, q.lora_linear_layer.up.weight   diffusers
    to_q_lora.down.weight, proj_lora1.up.weight         diffusers' attention processors, XLabs

The factors of one module are multiplied with each other: they mean nothing apart.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from fedmr_merge.layers.plan import LayerGroup

_FACTOR = re.compile(
    r"(?:(?P<module>.+)[._])?"
    r"(?:lora_(?:(?:embedding_)?[AB]|E|magnitude_vector|down|up|mid)|lora_linear_layer[._](?:down|up)"
    r"|hada_[wt][12](?:_[ab])?|lokr_(?:t2|w[12](?:_[ab])?))(?:\..+)?",
    re.DOTALL,
)
#: Here the name of the module itself may end in `lora`: `proj_lora1` and `proj_lora2` are two modules.
_PROCESSOR = re.compile(r"(?P<module>(?:.*[._])?lora[0-9]*)\.(?:down|up)(?:\..+)?", re.DOTALL)


def module_of_factor(name: str) -> str | None:
    """Return the module of which a tensor is a factor or another part of its adapter, by its name in any library's
    spelling; None for any other tensor.
    """
    if "lora" not in name and "hada_" not in name and "lokr_" not in name:  # the expressions are slow
        return None
    if found := _FACTOR.fullmatch(name):
        return found["module"] or "adapter"
    if found := _PROCESSOR.fullmatch(name):
        return found["module"].removesuffix(".lora")
    return None


def factors_apart(groups: Iterable[LayerGroup]) -> list[str]:
    """Return the modules whose factors are in several layer groups."""
    places: defaultdict[str, set[str]] = defaultdict(set)
    for group in groups:
        for tensor in group.tensors:
            module = module_of_factor(tensor)
            if module is not None:
                places[module].add(group.name)
    return [module for module, names in places.items() if len(names) > 1]
