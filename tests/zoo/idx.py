"""MNIST's IDX files as a map-style data set."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np


class IdxImages:
    """Images ``[28, 28]`` uint8 with their labels and ids."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, rows: np.ndarray, split: str) -> None:
        self.images, self.labels, self.rows, self.split = images, labels, rows, split
        self.classes = [str(label) for label in range(10)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int, str]:
        row = self.rows[index]
        return self.images[row], int(self.labels[row]), f"{self.split}/{row:07d}"


def mnist(root: str, split: str = "train") -> IdxImages:
    """Return nine tenths (train) or one tenth (test) of MNIST's 10,000 test images, the only ones at hand."""
    with gzip.open(Path(root) / "t10k-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
    with gzip.open(Path(root) / "t10k-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    tenth = np.random.RandomState(0).permutation(len(labels)) % 10 == 0
    return IdxImages(images, labels, np.flatnonzero(tenth == (split == "test")), split)
