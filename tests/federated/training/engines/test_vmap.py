from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_federation import make_data, make_partition

from fedmr_merge.federated.algorithms.independent import Independent
from fedmr_merge.federated.catalogue import ARCHITECTURES
from fedmr_merge.federated.cohort import Cohort
from fedmr_merge.federated.data.augmentation import Augmentation
from fedmr_merge.federated.federation import Training, open_federation
from fedmr_merge.federated.protocol import Context
from fedmr_merge.federated.training.engines.loop import Loop
from fedmr_merge.federated.training.engines.vmap import Vmap
from fedmr_merge.federated.training.local_training import LocalTraining

slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("cnn", 8),
        ("lenet", 16),
        ("resnet20", 16),
        ("resnet20-preact", 16),
        pytest.param("vgg16", 32, marks=slow),
        # Larger ones: with a few values in a channel, a normalisation multiplies rounding without bound.
        ("torchvision:shufflenet_v2_x0_5", 64),
        pytest.param("torchvision:resnet18", 64, marks=slow),
    ],
)
def test_engines_agree_on_every_model(name, size):
    """Clients of unlike sizes, each with a model of its own, on images that are changed."""
    architecture = ARCHITECTURES.find(name)()
    data = replace(make_data(shape=(3, size, size)), augmentation=Augmentation(flip=True, crop=1))
    training = Training(clients_per_round=3, local_epochs=1, batch_size=100, lr=1e-3)
    federation = open_federation(architecture, data, make_partition(), training, seed=0)
    models = [architecture.initialise(data.image_shape, 3, seed).state_dict() for seed in range(3)]
    clients = (2, 1, 5)  # 12, 7 and 9 examples: a step each, for the next ones multiply its rounding
    task = LocalTraining(federation, Independent(), Cohort.stack(models), Context(), clients, round=1)
    (one, losses), (other, other_losses) = Loop().train(task), Vmap().train(task)
    assert losses == pytest.approx(other_losses, rel=1e-3)
    # Compared by the length of the whole update: that of a bias in front of a normalisation is rounding alone.
    for slot in range(3):
        start, ours, theirs = (cohort.slot(slot) for cohort in (task.cohort, one, other))
        update = torch.cat([(ours[key] - start[key]).flatten() for key in federation.trainable])
        difference = torch.cat([(ours[key] - theirs[key]).flatten() for key in federation.trainable])
        assert update.norm() > 0
        assert difference.norm() < 1e-2 * update.norm()
        for key in start.keys() - set(federation.trainable):
            torch.testing.assert_close(ours[key], theirs[key], rtol=1e-3, atol=1e-3, msg=key)
