"""A small federation for each task: random examples, 6 clients of unlike sizes, of whom 3 train in a round."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from small_federation import SIZES, make_data, make_partition

from fedmr_merge.federated.catalogue import TASKS
from fedmr_merge.federated.data.examples import Data
from fedmr_merge.federated.data.features import FeatureData, Scale
from fedmr_merge.federated.data.tensors import Examples
from fedmr_merge.federated.data.tokenizers import Bytes
from fedmr_merge.federated.data.tokens import IGNORED, TokenData
from fedmr_merge.federated.federation import Federation, open_federation
from fedmr_merge.federated.models.base import Architecture
from fedmr_merge.federated.models.cnn import Cnn
from fedmr_merge.federated.models.gpt import Gpt
from fedmr_merge.federated.models.mlp import Mlp
from fedmr_merge.federated.models.text_classifier import TextClassifier
from fedmr_merge.federated.training.options import Training

SMALL = {"width": 8, "depth": 1, "heads": 2}
LENGTH = 6


class FewTokens(Bytes):
    """A vocabulary of 11 tokens, so that models are small."""

    vocabulary, end, padding = 11, 9, 10


def make_features(classes: bool) -> FeatureData:
    rng = np.random.default_rng(5)

    def part(examples: int) -> Examples:
        rows = rng.normal(size=(examples, 4)).astype(np.float32)
        total = torch.from_numpy(rows).sum(dim=1)
        return Examples(torch.from_numpy(rows), (total > 0).long() + (total > 1).long() if classes else total / 2)

    return FeatureData(
        train=part(sum(SIZES)),
        test=part(20),
        class_names=("low", "middle", "high") if classes else (),
        feature_names=("a", "b", "c", "d"),
        scales=(Scale(0.0, 1.0),) * 4,
        target_scale=None if classes else Scale(10.0, 2.0),
    )


def make_tokens(classes: bool) -> TokenData:
    """Sequences of 1 to 6 tokens: even ones of class 0, odd ones of class 1; the rest is padding."""
    rng = np.random.default_rng(6)

    def part(examples: int) -> Examples:
        labels = torch.from_numpy(rng.integers(0, 2, size=examples))
        lengths = torch.from_numpy(rng.integers(1, LENGTH + 1, size=examples))
        ids = 2 * torch.from_numpy(rng.integers(0, 4, size=(examples, LENGTH))) + labels[:, None]
        mask = torch.arange(LENGTH) < lengths[:, None]
        ids = torch.where(mask, ids, FewTokens.padding)
        if classes:
            return Examples({"input_ids": ids, "attention_mask": mask}, labels)
        following = torch.cat([ids[:, 1:], torch.full((examples, 1), FewTokens.end)], dim=1)
        return Examples({"input_ids": ids, "attention_mask": mask}, torch.where(mask, following, IGNORED))

    names = ("even", "odd") if classes else ()
    return TokenData(train=part(sum(SIZES)), test=part(20), class_names=names, tokenizer=FewTokens(), length=LENGTH)


def parts_of(task: str) -> tuple[Data, Architecture]:
    """Return small data of a task, and a small model for them."""
    made: dict[str, tuple[Data, Architecture]] = {
        "image-classification": (make_data(), Cnn()),
        "tabular-classification": (make_features(classes=True), Mlp(hidden=(5,))),
        "regression": (make_features(classes=False), Mlp(hidden=(5,))),
        "text-classification": (make_tokens(classes=True), TextClassifier(**SMALL)),
        "causal-lm": (make_tokens(classes=False), Gpt(**SMALL)),
    }
    return made[task]


def make_task_federation(task: str, seed: int = 0, device: str = "cpu", **training: Any) -> Federation:
    data, architecture = parts_of(task)
    options = {"clients_per_round": 3, "local_epochs": 1, "batch_size": 4, "lr": 0.05} | training
    return open_federation(
        architecture,
        data,
        make_partition(),
        Training(**options),
        seed=seed,
        device=device,
        task=TASKS.find(task)(),
    )


def padded_further(data: TokenData, by: int) -> TokenData:
    """Return the same sequences with so many places of padding more."""

    def part(examples: Examples) -> Examples:
        ids, mask = (examples.inputs[name] for name in ("input_ids", "attention_mask"))
        more = torch.full((len(ids), by), data.tokenizer.padding)
        inputs = {
            "input_ids": torch.cat([ids, more], dim=1),
            "attention_mask": torch.cat([mask, torch.zeros_like(more, dtype=torch.bool)], dim=1),
        }
        targets = examples.targets
        if targets.dim() == 2:
            targets = torch.cat([targets, torch.full_like(more, IGNORED)], dim=1)
        return Examples(inputs, targets)

    return replace(data, train=part(data.train), test=part(data.test), length=data.length + by)
