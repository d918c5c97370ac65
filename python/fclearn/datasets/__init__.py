# SPDX-License-Identifier: Apache-2.0
"""What to train and evaluate on: icon fonts, image folders, manifests, Fashion-MNIST, WordNet."""

from __future__ import annotations

from fclearn.datasets.base import ImageDataset, split_classes
from fclearn.datasets.crops import RandomCrops
from fclearn.datasets.fashion_mnist import load_fashion_mnist
from fclearn.datasets.folder import load_image_folder, load_image_manifest
from fclearn.datasets.icons import load_icons
from fclearn.datasets.rows import LabelledSet
from fclearn.datasets.vectors import VectorDataset
from fclearn.datasets.wordnet import Glosses, load_glosses

__all__ = [
    "Glosses",
    "ImageDataset",
    "LabelledSet",
    "RandomCrops",
    "VectorDataset",
    "load_fashion_mnist",
    "load_glosses",
    "load_icons",
    "load_image_folder",
    "load_image_manifest",
    "split_classes",
]
