# SPDX-License-Identifier: Apache-2.0
"""Images to train and evaluate on: icon fonts, image folders, manifests, Fashion-MNIST."""

from __future__ import annotations

from fclearn.datasets.base import ImageDataset, split_classes
from fclearn.datasets.fashion_mnist import load_fashion_mnist
from fclearn.datasets.folder import load_image_folder, load_image_manifest
from fclearn.datasets.icons import load_icons

__all__ = [
    "ImageDataset",
    "load_fashion_mnist",
    "load_icons",
    "load_image_folder",
    "load_image_manifest",
    "split_classes",
]
