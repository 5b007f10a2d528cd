"""A frozen model with an adapter, as a module that has the tensors of the adapter alone, named as in PEFT's files.

So a cohort, a checkpoint and what travels are the adapter. The frozen model is there once: copies of the module share
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn
from torch.func import functional_call

from fedmr_merge.checkpoint.folder import WEIGHTS
from fedmr_merge.checkpoint.output import ADAPTER
from fedmr_merge.errors import TrainingError, shown
from fedmr_merge.federated.cohort import Cohort, Mean, Weights
from fedmr_merge.federated.models._adapter_mean import exact_mean, nearest_of_rank, pairs_of, shaped_alike
from fedmr_merge.federated.models._pretrained import library, refused
from fedmr_merge.federated.models.base import Architecture
from fedmr_merge.hub.listing import parse_hub
from fedmr_merge.layers.rules import group_tensors
from fedmr_merge.merging.adapters import CONFIG, factor_of

_NAME = "default"  # that PEFT gives the one adapter of a model


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters: a layer of weight W computes with W + (α / r) B A, and only A and B are trained.

    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2022 (ICLR).
    """

    kind: Literal["lora"] = "lora"
    r: Annotated[int, Ge(1), Le(65_536)] = 8  #: r, the rank of each product
    alpha: Annotated[float, Gt(0)] = 16.0  #: α; the products are multiplied by α / r
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0  #: probability of dropping out what enters an A
    target_modules: tuple[str, ...] | None = (
        None  #: names or endings of layers; left out: those PEFT knows for the model
    )
    mean: Literal["exact", "factors"] = "exact"
    """The global model: the mean of the products B A, or the means of A and of B apart (FedIT)."""
    rank: Annotated[int, Ge(1), Le(65_536)] | None = None
    """The largest rank of an exact mean that is only evaluated and published; left out: the sum of the clients'."""
    modules_to_save: tuple[str, ...] | None = None  #: layers trained whole; left out: the head, and what is random


@dataclass(frozen=True)
class Adaptable(Architecture):
    """Base of the architectures that start from a trained model of another library, and may train an adapter of it."""

    adapter: Lora | None = field(default=None, kw_only=True)
    """An adapter, which is trained in place of the model: `{kind: lora, r: 8, alpha: 16, target_modules: [query]}`."""

    def options(self) -> dict[str, Any]:
        """Return the options by name, as a recipe would spell them."""
        return super().options() | {"adapter": None if self.adapter is None else asdict(self.adapter)}

    @property
    def base_name(self) -> str:
        """The folder or the Hub id of the trained model."""
        raise NotImplementedError

    @property
    def weights_file(self) -> str:
        """The name of the file that a model's tensors are written to."""
        return super().weights_file if self.adapter is None else f"{ADAPTER}{WEIGHTS}"

    def layers(self, module: nn.Module) -> dict[str, str]:
        """Return the layer of every tensor; both factors of an adapted layer are one."""
        if self.adapter is None:
            return super().layers(module)
        groups = group_tensors("lora", {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()})
        return {tensor: group.name for group in groups for tensor in group.tensors}

    def of_weights(self, module: nn.Module, weights: Weights) -> Architecture:
        """Return the architecture of a model with these weights: its rank, and the layers that PEFT has found."""
        if self.adapter is None:
            return self
        assert isinstance(module, Adapted)
        config = module.adapter_config
        rank = next(len(tensor) for name, tensor in weights.items() if factor_of(name))
        # What the product of the factors is multiplied by is that of the module, whatever the rank.
        adapter = replace(
            self.adapter,
            r=rank,
            alpha=self.adapter.alpha * rank / self.adapter.r,
            target_modules=tuple(config["target_modules"]),
            modules_to_save=tuple(config["modules_to_save"] or ()),
        )
        return replace(self, adapter=adapter)

    def sidecars(self, module: nn.Module) -> dict[str, dict[str, Any]]:
        """Return the `adapter_config.json` by which PEFT loads an adapter."""
        if self.adapter is None:
            return {}
        assert isinstance(module, Adapted)
        ref = parse_hub(module.origin) if module.origin else None
        return {
            CONFIG: {
                **module.adapter_config,
                "base_model_name_or_path": self.base_name if ref is None else ref.repo_id,
                "revision": None if ref is None else ref.revision,
                "r": self.adapter.r,
                "lora_alpha": _whole(self.adapter.alpha),
            }
        }

    def mean(self, cohort: Cohort, weights: Sequence[float] | None, *, is_sent: bool) -> Mean:
        """Return the mean of a cohort; of adapters the exact one, unless the options say otherwise.

        What is sent to clients is the nearest of their rank; any other has the sum of their ranks, or the one asked
        for. `adapter_lost` is the share of the norm that is lost by a smaller rank.
        """
        if self.adapter is None or self.adapter.mean == "factors":
            return super().mean(cohort, weights, is_sent=is_sent)
        rank = self.adapter.r if is_sent else self.adapter.rank
        found, lost = exact_mean(cohort, weights, rank)
        return Mean(found, {} if rank is None else {"adapter_lost": lost})

    def like_trained(self, weights: Weights) -> Mean:
        """Return a global model as one that can be sent to clients: an adapter of their rank.

        `adapter_lost_at_start` is the share of the norm that is lost where it had a larger one.
        """
        if self.adapter is None or all(len(weights[a]) <= self.adapter.r for a, _ in pairs_of(list(weights))):
            return Mean(weights)
        found, lost = nearest_of_rank(weights, self.adapter.r)
        return Mean(found, {"adapter_lost_at_start": lost})

    def same_form(self, weights: Weights, trained: Weights) -> Weights:
        """Return a global model in which adapters have the rank that they have in a trained model."""
        if self.adapter is None:
            return weights
        return shaped_alike(weights, {name: tuple(tensor.shape) for name, tensor in trained.items()})

    def require_mean_of_weights(self, method: str) -> None:
        """Raise TrainingError where adapters are averaged by their products."""
        if self.adapter is not None and self.adapter.mean == "exact":
            raise TrainingError(
                f"{method} needs the mean of weights, and the global model of adapters is the mean of products",
                hint="set model.adapter.mean to factors",
            )

    def require_trained(self, trained: bool, option: str) -> None:
        """Raise TrainingError where an adapter would be one of random weights."""
        if self.adapter is not None and not trained:
            raise TrainingError(
                f"model {shown(self.name)} cannot have an adapter: its weights are random, and nothing keeps them",
                hint=f"set {option}, or leave model.adapter out",
            )


class Adapted(nn.Module):
    """Runs a model of PEFT with the tensors of its adapter, which are the only ones of this module."""

    def __init__(self, network: Any, names: dict[str, str]) -> None:
        """`names` maps what a file calls a tensor to what the network calls it."""
        super().__init__()
        self.origin: str | None = None  #: of the frozen model, `org/name@commit`, where it came from the Hub
        # In a tuple, so that it is none of this module's parts: what is frozen is in no state dict.
        self._network = (network,)
        self._places: list[tuple[str, nn.Module, str]] = []
        tensors = network.state_dict(keep_vars=True)
        for name, inner in names.items():
            *path, last = name.split(".")
            holder: nn.Module = self
            for part in path:
                if part not in holder._modules:
                    holder.add_module(part, nn.Module())
                holder = holder.get_submodule(part)
            if isinstance(tensors[inner], nn.Parameter):
                holder.register_parameter(last, tensors[inner])
            else:
                holder.register_buffer(last, tensors[inner])
            self._places.append((inner, holder, last))

    @property
    def network(self) -> Any:
        """The model of PEFT. Its adapter may have other values than this module's."""
        return self._network[0]

    @property
    def adapter_config(self) -> dict[str, Any]:
        """The content of `adapter_config.json`, without the name of the frozen model."""
        found = self.network.peft_config[_NAME].to_dict()
        plain = {key: sorted(value) if isinstance(value, set) else value for key, value in found.items()}
        return {**plain, "inference_mode": True}

    @property
    def frozen(self) -> list[Tensor]:
        """The tensors of the model that are not trained. Copies of this module share them."""
        own = {id(tensor) for tensor in (*self.parameters(), *self.buffers())}
        return [t for t in (*self.network.parameters(), *self.network.buffers()) if id(t) not in own]

    def forward(self, *values: Tensor, **named: Tensor) -> Tensor:
        """Compute what the adapted model does."""
        tensors = {inner: getattr(holder, last) for inner, holder, last in self._places}
        result: Tensor = functional_call(self.network, tensors, values, named, tie_weights=False)
        return result

    def train(self, mode: bool = True) -> Adapted:
        """Set the mode; frozen statistics stay as they are."""
        super().train(mode)
        self.network.train(mode)
        for part in self.network.modules():
            if getattr(part, "track_running_stats", False):
                part.eval()
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Adapted:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.network._apply(fn, recurse)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Adapted:
        memo |= {id(tensor): tensor for tensor in self.frozen}
        copy = type(self).__new__(type(self))
        memo[id(self)] = copy
        copy.__dict__.update(deepcopy(self.__dict__, memo))
        return copy


def adapted(
    network: nn.Module, options: Lora, heads: Sequence[str], random: Sequence[str], task_type: str | None, model: str
) -> Adapted:
    """Freeze a network and return it with a new adapter; what is random is drawn from torch's global generator.

    Layers `heads` and `random` are trained whole where the options name none; layers that are random must be. `model`
    is what messages call the network. Raises TrainingError.
    """
    peft = library("peft", "adapters", f"an adapter of model {model}")
    kept = options.modules_to_save
    if kept is None:
        kept = (*heads, *(name for name in random if not _covered(name, heads)))
    if lost := [name for name in random if not _covered(name, kept)]:
        raise TrainingError(
            f"model {model} has no trained weights for its layer {shown(lost[0])}, and random ones would be lost",
            hint=f"add {shown(lost[0])} to model.adapter.modules_to_save, or leave that out",
        )
    names = [f".{name}" for name, _ in network.named_modules()]
    for option, named in (("modules_to_save", kept), ("target_modules", options.target_modules or ())):
        if absent := [name for name in named if not any(found.endswith(f".{name}") for found in names)]:
            raise TrainingError(
                f"model {model} has no layer named {shown(absent[0])}, which model.adapter.{option} names",
                hint="name layers as the model itself does, by the end of their names",
            )
    config = peft.LoraConfig(
        r=options.r,
        lora_alpha=_whole(options.alpha),
        lora_dropout=options.dropout,
        target_modules=None if options.target_modules is None else list(options.target_modules),
        modules_to_save=list(kept) or None,
        task_type=task_type,
    )
    with refused(f"model {model} cannot have this adapter"):
        wrapped = peft.PeftModel(network, config)
    return Adapted(wrapped, _names(peft, wrapped))


def _covered(name: str, kept: Sequence[str]) -> bool:
    """Return whether a layer is one of those named, or part of one; PEFT knows layers by the end of their names."""
    return any(f".{one}." in f".{name}." for one in kept)


def _whole(number: float) -> float:
    return int(number) if number == int(number) else number


def _names(peft: Any, wrapped: Any) -> dict[str, str]:
    """Return what a file of PEFT calls each tensor of an adapter, and what the model calls it."""
    tensors = wrapped.state_dict(keep_vars=True)
    inner = {id(tensor): name for name, tensor in tensors.items()}
    found = peft.get_peft_model_state_dict(wrapped, state_dict=tensors, save_embedding_layers=False)
    return {name: inner[id(tensor)] for name, tensor in found.items()}
