"""Map-style data sets: ``torchvision:`` classes and users' factories."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import operator
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torchvision import datasets

from raysense.datasets.base import UNSPLIT, DataSource, ImageReader, PerProcess, Progress, SplitListing
from raysense.datasets.images import to_image
from raysense.references import Reference, call_factory, factory_source, import_factory, local_path, option_value


class MapStyleSource(DataSource):
    """A data set with ``len`` and items (image, label) or (image, label, sample id).

    A split is passed as ``split=NAME``, or as ``train=True`` and ``train=False`` (train and test), whichever the
    constructor takes. Without own ids they are ``split/0000012``, or ``name/0000012`` where there is no split.
    """

    def __init__(self, reference: Reference, splits: tuple[str, ...]) -> None:
        super().__init__(reference, splits)
        self._factory = (
            _torchvision_class(reference) if reference.scheme == "torchvision" else import_factory(reference)
        )
        for split in splits or (None,):
            _split_arguments(self._factory, self.options, split, reference)

    def list_split(self, split: str | None, progress: Progress) -> SplitListing:
        """List one split. torchvision's own classes list without reading where they tell their labels."""
        dataset = _build(self.reference, self.options, split)
        _, name = _split_arguments(self._factory, self.options, split, self.reference)
        code = b"" if self.reference.scheme == "torchvision" else factory_source(self._factory)
        known = _known_labels_and_content(dataset)
        ids: list[str] | None = None
        if known is None:
            labels, content, ids = self._read_all(dataset, progress)
        else:
            labels, content = known
        stem = self.reference.target.rpartition(":")[2] if name == UNSPLIT else name
        classes = getattr(dataset, "classes", None)
        return SplitListing(
            split=name,
            sample_ids=ids or [f"{stem}/{row:07d}" for row in range(len(labels))],
            labels=labels,
            content=hashlib.sha256(content + code).digest(),
            columns={"row": pa.array(np.arange(len(labels)), pa.int64())},
            classes=tuple(map(str, classes)) if isinstance(classes, list | tuple) else None,
        )

    def reader(self, table: pa.Table) -> ImageReader:
        """Return a reader that builds the data set on first use."""
        options = {key: text for key, text in self.options.items() if key != "download"}
        splits = {
            _split_arguments(self._factory, self.options, split, self.reference)[1]: split
            for split in self.splits or (None,)
        }
        return MapStyleReader(table, PerProcess(partial(_build_all, self.reference, options, splits)))

    def _read_all(self, dataset: Any, progress: Progress) -> tuple[np.ndarray, bytes, list[str] | None]:
        """Read every item for its label, its id and its part of the fingerprint."""
        labels: list[int] = []
        ids: list[str] = []
        digest = hashlib.sha256()
        total = len(dataset)
        for row in range(total):
            try:
                image, label, *identity = dataset[row]
                tensor = to_image(image)
            except Exception as error:
                raise self.reference.error(f"item {row} cannot be read ({type(error).__name__}: {error})") from error
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().numpy().data)
            try:
                labels.append(operator.index(label))
            except TypeError as error:
                mend = "labels are integers from 0 on"
                raise self.reference.error(f"item {row} has the label {label!r}; {mend}") from error
            ids += [str(value) for value in identity]
            progress(row + 1, total)
        if ids and len(ids) != total:
            raise self.reference.error("items are (image, label) or (image, label, id), all alike")
        return np.array(labels, dtype=np.int64), digest.digest(), ids or None


class MapStyleReader(ImageReader):
    """Reads items of map-style data sets, one per split, built on first use and never pickled."""

    def __init__(self, table: pa.Table, datasets_by_split: PerProcess[dict[str, Any]]) -> None:
        super().__init__(table)
        self._datasets = datasets_by_split

    @property
    def in_memory(self) -> bool:
        """Whether the data sets hold their images as arrays."""
        return all(_images_in_memory(dataset) is not None for dataset in self._datasets.get().values())

    def read(self, row: int) -> torch.Tensor:
        """Return the item's image; whatever the data set raises is this sample's failure."""
        dataset = self._datasets.get()[self.cell("split", row)]
        try:
            return to_image(dataset[self.position("row", row)][0])
        except Exception as error:
            raise self.failure(row, error) from error


def _torchvision_class(reference: Reference) -> Callable[..., Any]:
    """Return the torchvision data set class that a reference names."""
    names = [name for name in datasets.__all__ if inspect.isclass(getattr(datasets, name))]
    if reference.target not in names:
        close = difflib.get_close_matches(reference.target, names, n=1)
        hint = f"did you mean {close[0]}?" if close else "see torchvision.datasets"
        raise reference.error(f"torchvision has no data set {reference.target}; {hint}")
    factory: Callable[..., Any] = getattr(datasets, reference.target)
    if "root" in inspect.signature(factory).parameters and "root" not in reference.options:
        raise reference.error("says not where the files are; give root=PATH")
    return factory


def _build(reference: Reference, options: Mapping[str, str], split: str | None) -> Any:
    """Build the data set of one split. Raises UsageError where its files are missing or it is not map-style."""
    factory = _torchvision_class(reference) if reference.scheme == "torchvision" else import_factory(reference)
    arguments, _ = _split_arguments(factory, options, split, reference)
    if "root" in options:
        arguments["root"] = str(local_path(options["root"]))
    if reference.scheme == "torchvision":
        try:
            inspect.signature(factory).bind(**arguments)
        except TypeError as error:
            raise reference.error(f"{error}; it takes {', '.join(inspect.signature(factory).parameters)}") from error
        try:
            dataset = factory(**arguments)
        except (RuntimeError, OSError, ValueError, ImportError) as error:
            reason = str(error).strip().partition("\n")[0].partition(" You can use download=True")[0]
            mend = "correct root=, or add download=true"
            raise reference.error(f"cannot be opened in {arguments.get('root')} ({reason}); {mend}") from error
    else:
        dataset = call_factory(factory, arguments, reference)
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise reference.error(f"a {type(dataset).__name__} is not map-style; give it __len__ and __getitem__")
    return dataset


def _build_all(reference: Reference, options: Mapping[str, str], splits: Mapping[str, str | None]) -> dict[str, Any]:
    """Build the data sets of all splits, by their names in the listing."""
    return {name: _build(reference, options, split) for name, split in splits.items()}


def _split_arguments(
    factory: Callable[..., Any], options: Mapping[str, str], split: str | None, reference: Reference
) -> tuple[dict[str, Any], str]:
    """Return the keyword arguments for a split, and the split's name in the listing."""
    arguments: dict[str, Any] = {key: option_value(text) for key, text in options.items()}
    parameters = inspect.signature(factory).parameters
    option = next((name for name in ("split", "train") if name in parameters), None)
    if split is None:
        default = parameters[option].default if option else None
        value = arguments.get("split", arguments.get("train", default))
        if isinstance(value, bool):
            return arguments, "train" if value else "test"
        return arguments, value if isinstance(value, str) else UNSPLIT
    if option is None:
        raise reference.error(f"has no splits (neither split nor train), but {split} is asked for; leave the split out")
    if option in options:
        raise reference.error(
            f"has {option}={options[option]}, but split {split} is asked for too; leave one of them out"
        )
    if option == "train" and split not in ("train", "test"):
        raise reference.error(f"has the splits train and test, not {split}; ask for one of them")
    arguments[option] = split if option == "split" else split == "train"
    return arguments, split


def _known_labels_and_content(dataset: Any) -> tuple[np.ndarray, bytes] | None:
    """Return labels and a digest of the images of a torchvision data set that tells them without reading each image."""
    if not type(dataset).__module__.startswith("torchvision.") or getattr(dataset, "target_transform", None):
        return None
    if isinstance(dataset, datasets.DatasetFolder):
        files = [f"{os.path.relpath(path, dataset.root)} {os.path.getsize(path)}" for path, _ in dataset.samples]
        return np.array(dataset.targets, dtype=np.int64), "\n".join(files).encode()
    targets = getattr(dataset, "targets", getattr(dataset, "labels", None))
    images = _images_in_memory(dataset)
    labels = None if targets is None else np.asarray(targets)
    if images is None or labels is None or labels.shape != (len(dataset),):
        return None
    if not np.issubdtype(labels.dtype, np.integer) or len(images) != len(labels):
        return None
    return labels.astype(np.int64), hashlib.sha256(np.ascontiguousarray(images).data).digest()


def _images_in_memory(dataset: Any) -> np.ndarray | torch.Tensor | None:
    """Return the array in which a data set holds its images, None where it has none."""
    data = getattr(dataset, "data", None)
    if data is None and isinstance(dataset, torch.utils.data.TensorDataset):
        data = dataset.tensors[0]
    return data if isinstance(data, np.ndarray | torch.Tensor) else None
