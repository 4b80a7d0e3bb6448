"""Training a network on data with its outliers, as the outlier study needs it: saved once, read by every worker.

The trained network is a model reference, ``raysense.studies.training:trained?model=REFERENCE&checkpoint=FILE``: the
network of another reference (quoted where it has options) with the weights of a file, which may be a URI.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from raysense.command_options import progress_callback
from raysense.datasets import open_data
from raysense.devices import resolve_device
from raysense.engine.files import Directory
from raysense.engine.runtime import local_cpus
from raysense.errors import RaysenseError, SampleError, UsageError, first_line
from raysense.loading import SampleDecoder, as_float
from raysense.models import LoadedModel, load_model
from raysense.networks import ExportedModel
from raysense.preprocessing import Preprocessing
from raysense.references import absolute_reference
from raysense.training import Batches, fit

WEIGHTS, RECORD = "network.pt", "training.json"
_PROBED = 16
_MOST_LOADERS = 16


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: Adam, a cosine schedule, no augmentation, starting from the weights it has.

    Attributes:
        epochs: Passes over the data.
        batch_size: Images a step.
        learning_rate: Of the first step.
        seed: Of the order of the images and of random layers.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    seed: int


@dataclass(frozen=True)
class Trained:
    """What came of training.

    Attributes:
        model: Reference of the trained network.
        loss: Mean cross-entropy of the last epoch, nats.
        accuracy: Fraction of the validation samples that are classified right; None without validation data.
        unreadable: Training samples that could not be read and were left out.
    """

    model: str
    loss: float
    accuracy: float | None
    unreadable: int


def trained(model: str, checkpoint: str) -> nn.Module:
    """Return the network of a model reference with the weights of a file that `train` wrote."""
    loaded = load_model(model)
    folder, _, name = checkpoint.rpartition("/")
    try:
        data = Directory(folder or ".", argument="checkpoint").read(name)
        loaded.module.load_state_dict(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
    except FileNotFoundError as error:
        raise UsageError(f"model {model!r}: there is no checkpoint {checkpoint}; train it first") from error
    except Exception as error:  # a damaged file can raise anything
        message = f"checkpoint {checkpoint} cannot be loaded ({first_line(error)})"
        raise UsageError(f"model {model!r}: {message}; remove it, and train again") from error
    _make_trainable(loaded)
    module: Any = loaded.module
    module.classes = loaded.classes
    module.preprocessing = None if loaded.preprocessing is None else loaded.preprocessing.as_dict()
    return loaded.module


def trained_reference(model: str, out: str) -> str:
    """Return the reference of a model with the weights that `train` writes to the directory ``out``."""
    network, weights = (
        quote(text, safe="/:,.+=~{}")
        for text in (absolute_reference(model, "model"), f"{Directory(out).location}/{WEIGHTS}")
    )
    return f"{__name__}:{trained.__name__}?model={network}&checkpoint={weights}"


def train(
    model: str, data: str, splits: Sequence[str], validation: tuple[str, str] | None, recipe: Recipe, out: str,
    device: str = "auto", quiet: bool = True,
) -> Trained:  # fmt: skip
    """Train a network on some splits of a data set and save it; does nothing where that was done before.

    Args:
        model: Model reference; training goes on from the weights it has.
        data: Data reference.
        splits: Splits to train on.
        validation: Data reference and split on which accuracy is measured in the end, never trained on.
        recipe: How to train.
        out: Directory or URI for ``network.pt`` and, written last, ``training.json``.
        device: ``auto``, ``cpu`` or ``cuda``, of this process.
        quiet: Whether to show no progress.

    Raises:
        UsageError: the network cannot be trained, or ``out`` holds one that was trained otherwise.
        RaysenseError: training diverged.
    """
    folder = Directory(out)
    loaded = load_model(model, resolve_device(device))
    task: dict[str, Any] = {"model": loaded.fingerprint, **vars(recipe)}
    examples, task["data"] = _open(data, splits, loaded.preprocessing)
    held_out, task["validation data"] = (None, None)
    if validation is not None:
        held_out, task["validation data"] = _open(validation[0], validation[1:], loaded.preprocessing)
    if any(isinstance(part, ExportedModel) for part in loaded.module.modules()):
        raise UsageError(f"model {model!r} is an exported program, which cannot be trained; use --epochs 0 to scan it")
    if len(examples) < 2:
        raise UsageError(f"data {data!r}: there is one image only; training needs two or more")
    if folder.exists(RECORD):
        record = folder.read_json(RECORD)
        _check_same(record["task"], task, folder)
    else:
        record = {"task": task, **_train(loaded, examples, held_out, recipe, resolve_device(device), quiet)}
        buffer = io.BytesIO()
        torch.save({key: value.cpu() for key, value in loaded.module.state_dict().items()}, buffer)
        folder.write(WEIGHTS, buffer.getvalue())
        folder.write_json(RECORD, record)
    return Trained(trained_reference(model, out), record["loss"], record["accuracy"], record["unreadable"])


class _Examples(Dataset[tuple[Tensor, int] | None]):
    """Decoded images with their labels; None where an image cannot be read."""

    def __init__(self, decoder: SampleDecoder, labels: list[int]) -> None:
        self.decoder = decoder
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int] | None:
        try:
            return self.decoder.decode(row), self.labels[row]
        except SampleError:
            return None  # counted by `_Feed`, and a row with an error in the scan that follows

    @property
    def in_memory(self) -> bool:
        """Whether reading an image is cheap."""
        return self.decoder.reader.in_memory


class _Feed:
    """Batches of examples on a device, in an order drawn from a generator; counts what could not be read."""

    def __init__(self, examples: _Examples, batch_size: int, device: str, order: torch.Generator | None) -> None:
        loaders = 0 if examples.in_memory else min(_MOST_LOADERS, local_cpus())
        # One image left over would be a batch without variance for batch normalisation.
        self._loader = DataLoader(
            examples,
            batch_size=batch_size,
            shuffle=order is not None,
            generator=order,
            drop_last=order is not None and len(examples) > batch_size,
            num_workers=loaders,
            # Forking a process with threads and an open device is unsafe.
            multiprocessing_context="forkserver" if loaders else None,
            persistent_workers=loaders > 0,
            collate_fn=_collate,
        )
        self._device = device
        self.unreadable = 0

    def __len__(self) -> int:
        return len(self._loader)

    def __call__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch."""
        self.unreadable = 0
        for images, labels, unreadable in self._loader:
            self.unreadable += unreadable
            if len(labels):
                yield as_float(images, self._device), labels.to(self._device)


def _collate(items: list[tuple[Tensor, int] | None]) -> tuple[Tensor, Tensor, int]:
    """Stack what could be read; the last number is how many items could not."""
    read = [item for item in items if item is not None]
    images = torch.stack([image for image, _ in read]) if read else torch.zeros(0)
    return images, torch.tensor([label for _, label in read], dtype=torch.int64), len(items) - len(read)


def _train(
    loaded: LoadedModel, examples: _Examples, held_out: _Examples | None, recipe: Recipe, device: str, quiet: bool
) -> dict[str, Any]:
    """Train in place; returns loss, accuracy and the number of unreadable samples."""
    module = loaded.module
    feed = _Feed(examples, recipe.batch_size, device, torch.Generator().manual_seed(recipe.seed))
    devices = [torch.cuda.current_device()] if device == "cuda" else []
    with torch.random.fork_rng(devices=devices), progress_callback("training", quiet) as tell:
        torch.manual_seed(recipe.seed)
        _make_trainable(loaded)
        module.train()
        try:
            loss = fit(module, feed, recipe.epochs, len(feed), recipe.learning_rate, tell)
        except FloatingPointError as error:
            raise RaysenseError(
                f"training diverged ({error}); lower --learning-rate {recipe.learning_rate:g}"
            ) from error
        finally:
            module.eval().requires_grad_(False)
        right = None if held_out is None else accuracy(module, _Feed(held_out, recipe.batch_size, device, None)())
    return {"loss": loss, "accuracy": right, "unreadable": feed.unreadable}


def _make_trainable(loaded: LoadedModel) -> None:
    """Let the parameters that the model's builder left trainable require gradients again."""
    for name, parameter in loaded.module.named_parameters():
        parameter.requires_grad_(name in loaded.trainable)


def accuracy(module: nn.Module, batches: Batches) -> float:
    """Return the fraction of samples whose label has the largest logit; NaN without samples."""
    right, seen = 0, 0
    with torch.no_grad():
        for images, labels in batches:
            right += int((module(images).argmax(1) == labels).sum())
            seen += len(labels)
    return right / seen if seen else float("nan")


def _open(data: str, splits: Sequence[str], geometry: Preprocessing | None) -> tuple[_Examples, str]:
    """Open splits of a data set; returns its fingerprint too. Images of another size than the first count as unreadable."""
    source = open_data(data, splits)
    listing = source.list()
    decoder = SampleDecoder(source.reader(listing.table), source.preprocessing or geometry, None)
    examples = _Examples(decoder, listing.table["label"].to_pylist())
    first = next((item for item in map(examples.__getitem__, range(min(_PROBED, len(examples)))) if item), None)
    if first is None:
        raise UsageError(f"data {data!r}: none of the first {_PROBED} samples can be read; check the files")
    examples.decoder = replace(decoder, shape=tuple(first[0].shape))
    return examples, listing.fingerprint


def _check_same(saved: dict[str, Any], task: dict[str, Any], folder: Directory) -> None:
    """Refuse a directory whose network was trained otherwise."""
    for key, now in task.items():
        if saved.get(key) != now:
            raise UsageError(
                f"out {folder.location!r} holds a network trained with another {key.replace('_', ' ')} (it was "
                f"{str(saved.get(key))[:12]}, is {str(now)[:12]}); name another directory"
            )
