"""Any model of transformers, by the folder or the Hub id that it is in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fedmr_merge.errors import TrainingError, shown
from fedmr_merge.federated.models._pretrained import Base, library, open_base, refused, without_dropout
from fedmr_merge.federated.models.base import Architecture
from fedmr_merge.seeds import derive_seed

Head = Literal["text-classification", "causal-lm", "image-classification"]

_CLASSES = {
    "text-classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
    "causal-lm": "MODEL_FOR_CAUSAL_LM_MAPPING",
    "image-classification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
}
_ATTENTION = "fedmr_merge"
"""The name that attention without a look at the values of a mask has in transformers."""


@dataclass(frozen=True)
class Transformers(Architecture):
    """`transformers:ID_OR_FOLDER`: a model of transformers from a folder or the Hub, with the head that the task needs.

    Only its `config.json` and safetensors are read, and no code comes with it. The head is random where the model
    has another one or none. Dropout is off: a local step draws nothing, so that every engine takes the same one.
    """

    pretrained: bool = True  #: whether training starts from its weights, else from random ones of its `config.json`
    head: Head | None = None  #: what it predicts; left out: what the task asks for

    takes = None

    def for_task(self, task: str) -> Architecture:
        """Return the architecture with the head of a task, unless it names one itself."""
        if self.head is not None:
            return self
        if task not in get_args(Head):
            known = ", ".join(get_args(Head))
            raise TrainingError(
                f"model {self.shown_name} has no head for task {task}", hint=f"set model.head to one of {known}"
            )
        return replace(self, head=task)  # type: ignore[arg-type]

    @property
    def shown_name(self) -> str:
        """Its name, shortened for messages."""
        return shown(self.name)

    def base(self) -> Base:
        """Return the model that it starts from. Raises FedmrMergeError where it cannot be had."""
        return open_base(self.argument, weights=self.pretrained)

    def build(self, shape: Any, outputs: int) -> nn.Module:
        """Return the module with random weights."""
        base = open_base(self.argument, weights=False)
        return self._made(self._config(base), shape, outputs, None)

    def initialise(self, shape: Any, outputs: int, seed: int) -> nn.Module:
        """Return the module with the weights of the model, on the CPU; what they leave open is drawn with the seed."""
        base = self.base()
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(derive_seed(seed, "initial weights"))
            return self._made(self._config(base), shape, outputs, base if self.pretrained else None)

    def rebuild(self, config: Mapping[str, Any], shape: Any, outputs: int) -> nn.Module:
        """Return the module that a `config.json` describes, with random weights; nothing else is read."""
        named = str(config.get("model_type"))
        with refused(f"model {self.shown_name} cannot be built"):
            found = self._library().AutoConfig.for_model(
                named, **{k: v for k, v in config.items() if k != "model_type"}
            )
        return self._made(found, shape, outputs, None)

    def described(self, module: nn.Module, about: Mapping[str, Any]) -> dict[str, Any]:
        """Return the configuration of transformers: its own classes load the model by it, too."""
        found: dict[str, Any] = dict(module.described)  # type: ignore[arg-type]
        if self.head != "causal-lm" and (names := about.get("label_names")):
            found["id2label"] = {str(number): name for number, name in enumerate(names)}
            found["label2id"] = {name: number for number, name in enumerate(names)}
        return found

    def _library(self) -> Any:
        return library("transformers", "transformers", f"model {self.shown_name}")

    def _config(self, base: Base) -> Any:
        with refused(f"model {self.shown_name} cannot be read"):
            return self._library().AutoConfig.from_pretrained(
                base.folder, trust_remote_code=False, local_files_only=True
            )

    def _made(self, config: Any, shape: Any, outputs: int, base: Base | None) -> nn.Module:
        """Build the module, with the weights of a base where one is given."""
        assert self.head is not None
        classes = getattr(self._library(), _CLASSES[self.head])
        if type(config) not in classes:
            raise TrainingError(
                f"model {self.shown_name} is a {config.model_type}, which transformers has no head for {self.head} for",
                hint="choose another model, or another task",
            )
        if self.head == "causal-lm":
            self._fit_tokens(config, shape, random=base is None)
        else:
            if self.head == "text-classification":
                self._fit_tokens(config, shape, random=False)
            config.num_labels = outputs
        described = config.to_dict()
        for name, value in without_dropout(described).items():
            setattr(config, name, value)
        config.use_cache = False
        _register_attention()
        found = classes[type(config)]
        cls = _with_logits(found[0] if isinstance(found, tuple) else found, outputs)
        with refused(f"model {self.shown_name} cannot be built"):
            module = self._random(cls, config) if base is None else self._trained(cls, config, base)
        module.described = described | {"architectures": [cls.__name__], "dtype": "float32"}
        return module

    def _random(self, cls: Any, config: Any) -> nn.Module:
        attention = _ATTENTION if cls._supports_sdpa else "eager"
        module: nn.Module = cls._from_config(config, attn_implementation=attention, dtype=torch.float32)
        return module

    def _trained(self, cls: Any, config: Any, base: Base) -> nn.Module:
        attention = _ATTENTION if cls._supports_sdpa else "eager"
        module: nn.Module = cls.from_pretrained(
            base.folder,
            config=config,
            attn_implementation=attention,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            ignore_mismatched_sizes=True,
        )
        return module

    def _fit_tokens(self, config: Any, shape: tuple[int, int], *, random: bool) -> None:
        """Make room for the tokens of the data in a model of random weights; refuse data that others have none for."""
        length, vocabulary = shape
        places = getattr(config, "max_position_embeddings", None)
        if places is not None and length > places:
            raise TrainingError(
                f"model {self.shown_name} takes {places} tokens at most, and these sequences have {length}",
                hint="make the sequences of the data shorter",
            )
        if vocabulary <= config.vocab_size:
            return
        if not random:
            raise TrainingError(
                f"model {self.shown_name} knows {config.vocab_size} tokens, and the tokenizer of the data has "
                f"{vocabulary}",
                hint="use the model's own tokenizer for the data",
            )
        config.vocab_size = vocabulary


@cache
def _with_logits(cls: type[Any], outputs: int) -> type[Any]:
    """Return a class of transformers whose modules return their logits alone, so many for each place or example."""

    def forward(self: Any, *values: Tensor, **named: Tensor) -> Tensor:
        logits: Tensor = cls.forward(self, *values, **named).logits
        # A vocabulary may be rounded up beyond the tokens that there are.
        return logits[..., :outputs]

    return type(cls.__name__, (cls,), {"forward": forward, "__module__": cls.__module__, "__doc__": cls.__doc__})


@cache
def _register_attention() -> None:
    """Let transformers make every mask, without a look whether it masks anything: `vmap` cannot branch on values."""
    import transformers
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    def mask(**options: Any) -> Any:
        options["allow_is_causal_skip"] = False
        if options.get("attention_mask") is not None:
            options["allow_is_bidirectional_skip"] = False
        return sdpa_mask(**options)

    transformers.AttentionMaskInterface.register(_ATTENTION, mask)
    transformers.AttentionInterface.register(_ATTENTION, sdpa_attention_forward)
