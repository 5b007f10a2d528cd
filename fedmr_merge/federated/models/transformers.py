"""Any model of transformers, by the folder or the Hub id that it is in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from fedmr_merge.errors import TrainingError, shown
from fedmr_merge.federated.models._adapted import Adaptable, adapted
from fedmr_merge.federated.models._pretrained import Base, library, open_base, refused, without_dropout
from fedmr_merge.federated.models.base import Architecture
from fedmr_merge.federated.plugin import with_argument
from fedmr_merge.hub.inputs import public_name
from fedmr_merge.seeds import derive_seed

Head = Literal["text-classification", "causal-lm", "image-classification"]

_CLASSES = {
    "text-classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING",
    "causal-lm": "MODEL_FOR_CAUSAL_LM_MAPPING",
    "image-classification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING",
}
_TASK_TYPES = {"text-classification": "SEQ_CLS", "causal-lm": "CAUSAL_LM"}  # of PEFT
_ATTENTION = "fedmr_merge"
"""The name that attention without a look at the values of a mask has in transformers."""


@dataclass(frozen=True)
class Transformers(Adaptable):
    """`transformers:ID_OR_FOLDER`: a model of transformers from a folder or the Hub, with the head that the task needs.

    Only its `config.json` and safetensors are read, and no code comes with it. The head is random where the model
    has another one or none. Dropout is off: a local step draws no random numbers, so that every engine takes
    the same step.
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

    @property
    def packages(self) -> tuple[str, ...]:
        """The library, and PEFT where there is an adapter."""
        return ("transformers", "peft") if self.adapter else ("transformers",)

    @property
    def base_name(self) -> str:
        """The folder or the Hub id of the trained model."""
        return self.argument

    def base(self) -> Base:
        """Return the model that it starts from. Raises FedmrMergeError where it cannot be had."""
        return open_base(self.argument, weights=self.pretrained)

    def published(self) -> Architecture:
        """Return the architecture by a name that says nothing of this machine."""
        values = {option.name: getattr(self, option.name) for option in fields(self)}
        named: type[Architecture] = with_argument(Transformers, public_name(self.argument))
        return named(**values)

    def build(self, shape: Any, outputs: int) -> nn.Module:
        """Return the module with random weights."""
        return self._made(self._config(open_base(self.argument, weights=False)), shape, outputs, None)

    def initialise(self, shape: Any, outputs: int, seed: int) -> nn.Module:
        """Return the module with the weights of the model, on the CPU; what they leave open is drawn with the seed."""
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            torch.manual_seed(derive_seed(seed, "initial weights"))
            return self._trained(shape, outputs) if self.pretrained else self.build(shape, outputs)

    def rebuild(self, config: Mapping[str, Any], shape: Any, outputs: int) -> nn.Module:
        """Return the module that a `config.json` describes, with random weights; of an adapter, that of its model is
        read, too.
        """
        if self.adapter is not None:
            return self.build(shape, outputs)
        named = str(config.get("model_type"))
        with refused(f"model {self.shown_name} cannot be built"):
            found = self._library().AutoConfig.for_model(
                named, **{k: v for k, v in config.items() if k != "model_type"}
            )
        return self._made(found, shape, outputs, None)

    def restore(self, config: Mapping[str, Any], shape: Any, outputs: int) -> nn.Module:
        """Return the module that a `config.json` describes, to be filled; an adapter's model has its weights."""
        return self.rebuild(config, shape, outputs) if self.adapter is None else self._trained(shape, outputs)

    def described(self, module: nn.Module, about: Mapping[str, Any]) -> dict[str, Any]:
        """Return the configuration of transformers: its own classes load the model by it, too."""
        if self.adapter is not None:  # which PEFT loads by a configuration of its own
            return {}
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

    def _trained(self, shape: Any, outputs: int) -> nn.Module:
        base = self.base()
        return self._made(self._config(base), shape, outputs, base)

    def _made(self, config: Any, shape: Any, outputs: int, base: Base | None) -> nn.Module:
        """Build the module, with the weights of a base where one is given."""
        self.require_trained(self.pretrained, "model.pretrained to true")
        cls, described = self._class(config, shape, outputs, random=base is None)
        options = {
            "config": config,
            "attn_implementation": _ATTENTION if cls._supports_sdpa else "eager",
            "dtype": torch.float32,
        }
        missing: set[str] = set()
        with refused(f"model {self.shown_name} cannot be built"), _quiet(self._library()):
            if base is None:
                module = cls._from_config(**options)
            else:
                module, info = cls.from_pretrained(
                    base.folder,
                    use_safetensors=True,
                    local_files_only=True,
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                    **options,
                )
                missing = {*info["missing_keys"], *(entry[0] for entry in info["mismatched_keys"])}
        module.described = described
        if self.adapter is None:
            return cast(nn.Module, module)
        random = sorted({name.rpartition(".")[0] for name in missing})
        task_type = _TASK_TYPES.get(str(self.head))
        made = adapted(module, self.adapter, self._heads(module), random, task_type, self.shown_name)
        made.origin = None if base is None else base.origin
        return made

    def _heads(self, module: Any) -> list[str]:
        """Return the layers beside the model that all heads of it share; where it predicts tokens, there are none."""
        if self.head == "causal-lm":
            return []
        return [
            name
            for name, part in module.named_children()
            if name != module.base_model_prefix and any(True for _ in part.parameters())
        ]

    def _class(self, config: Any, shape: Any, outputs: int, *, random: bool) -> tuple[Any, dict[str, Any]]:
        """Return the class of the model with its head, and how it is described; dropout is off in `config` then."""
        assert self.head is not None
        classes = getattr(self._library(), _CLASSES[self.head])
        if type(config) not in classes:
            raise TrainingError(
                f"model {self.shown_name} is a {config.model_type}, for which transformers has no head for {self.head}",
                hint="choose another model, or another task",
            )
        if self.head != "causal-lm":
            config.num_labels = outputs
        if self.head == "text-classification" and getattr(config, "pad_token_id", None) is None:
            end = getattr(config, "eos_token_id", None)
            config.pad_token_id = end[0] if isinstance(end, list) else end
        if self.head != "image-classification":
            self._fit_tokens(config, shape, random=random and self.head == "causal-lm")
        found = classes[type(config)]
        cls = found[0] if isinstance(found, tuple) else found
        described = _without_folders(config.to_dict()) | {"architectures": [cls.__name__], "dtype": "float32"}
        for name, value in without_dropout(described).items():
            setattr(config, name, value)
        config.use_cache = False
        _register_attention()
        return _with_logits(cls, outputs, finds_padding=self.head == "text-classification"), described

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


def _without_folders(described: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration without the folder that it, or a part of it, was read from: a place of this machine."""
    return {
        key: _without_folders(value) if isinstance(value, dict) else value
        for key, value in described.items()
        if key != "_name_or_path"
    }


@contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """Within the block, transformers shows no progress, and reports no random layers: a new head always is."""
    logging = library.utils.logging
    verbosity, shows_progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shows_progress:
            logging.enable_progress_bar()


@cache
def _with_logits(cls: type[Any], outputs: int, *, finds_padding: bool) -> type[Any]:
    """Return a class of transformers whose modules return their logits alone, so many for each place or example.

    With `finds_padding`, a module may look for padding by the number of its token.
    """

    def forward(self: Any, *values: Tensor, **named: Tensor) -> Tensor:
        if finds_padding and "attention_mask" in named and self.config.pad_token_id is not None:
            # The tokenizer may pad with another token: decoders would take it for the last one of a text.
            is_token = named["attention_mask"].bool()
            named["input_ids"] = named["input_ids"].where(is_token, self.config.pad_token_id)
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
