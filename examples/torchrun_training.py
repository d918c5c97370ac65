# SPDX-License-Identifier: Apache-2.0
"""Your own loop by several processes: DistributedDataParallel, and classifiers spread over them.

    torchrun --nproc-per-node 2 examples/torchrun_training.py

Data and encoder are those of own_training_loop.py. Every process embeds its part of a batch; of the
new classifier, and of the old features that serve as rows of a classifier, each holds a part, so
that none stores them whole. The result is that of one process, to rounding: docs/scale.md.
"""

from __future__ import annotations

import torch
from own_training_loop import encoder_of, make_images
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fclearn
from fclearn.distributed import World, joined_world, shard_terms
from fclearn.losses import CosineClassifierLoss, InstanceCompatLoss, L2CompatLoss, LossTerm

BATCH_SIZE = 128  # of all processes together


def train(
    world: World,
    images: Tensor,
    labels: Tensor,
    dim: int,
    epochs: int,
    old_features: Tensor | None = None,
) -> tuple[nn.Module, float]:
    """Encoder, and the loss of the last epoch; with old features, compatible with them."""
    torch.manual_seed(0)  # the same weights on every process
    encoder = encoder_of(dim).to(world.device)
    parallel = DistributedDataParallel(encoder, process_group=world.group)
    whole = [LossTerm("new", 1.0, CosineClassifierLoss(int(labels.max()) + 1, dim))]
    if old_features is not None:
        whole.append(LossTerm("instances", 1.0, InstanceCompatLoss(old_features, labels)))
        whole.append(LossTerm("own", 1.0, L2CompatLoss(old_features)))
    terms = shard_terms(whole, world.group, world.device)
    for term in terms:
        term.module.to(world.device)  # those that are not spread
    spread = [p for term in terms for p in term.module.parameters()]
    optimizer = torch.optim.AdamW([{"params": parallel.parameters()}, {"params": spread}], lr=3e-3)
    order = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        sum_of_losses = torch.zeros((), device=world.device)
        batches = torch.randperm(len(images), generator=order).split(BATCH_SIZE)
        batches = [batch for batch in batches if len(batch) == BATCH_SIZE]
        for batch in batches:
            # All processes need as many rows: DistributedSampler with drop_last=True does the same.
            rows = batch.chunk(world.size)[world.rank].to(world.device)
            embeddings = parallel(images[rows])
            values = [term.weight * term.module(embeddings, labels[rows], rows) for term in terms]
            loss = torch.stack(values).sum()
            optimizer.zero_grad()
            loss.backward()
            for parameter in spread:
                # DistributedDataParallel averages over processes; shards have the sum.
                parameter.grad /= world.size
            optimizer.step()
            sum_of_losses += loss.detach()
        torch.distributed.all_reduce(sum_of_losses, group=world.group)
    return encoder.eval(), float(sum_of_losses) / len(batches) / world.size


def main() -> None:
    """Upgrade, and compare mAP on unseen classes."""
    with joined_world() as world:
        images, labels = (x.to(world.device) for x in make_images(150, 20, seed=1))
        test_images, test_labels = (x.to(world.device) for x in make_images(50, 20, seed=2))
        known = labels < 30
        old, _ = train(world, images[known], labels[known], dim=16, epochs=3)
        with torch.no_grad():
            cached, old_test = old(images), old(test_images)
        new, loss = train(world, images, labels, dim=32, epochs=15, old_features=cached)
        with torch.no_grad():
            new_test = new(test_images)
        if not world.is_first:
            return
        report = fclearn.compatibility_report(
            old_query=old_test,
            old_gallery=old_test,
            new_query=new_test,
            query_labels=test_labels,
            gallery_labels=test_labels,
            exclude_self=True,
            num_bootstrap=100,
        )
        for name, entry in report.matrix.items():
            print(f"{name}: mAP {100 * entry['map']:.1f}")
        print(f"loss of the last epoch: {loss:.4f}")


if __name__ == "__main__":
    main()
