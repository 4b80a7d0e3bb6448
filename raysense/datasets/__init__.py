"""Data sets: from a reference to a listing (made once, by the driver) and a reader of its images (in each worker).

Images are uint8 (0..255) or float32 ([0, 1]), ``[C, H, W]``. ``open_data`` says which references there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module

from raysense.datasets.base import UNSPLIT, DataSource, ImageReader, Listing, Progress
from raysense.datasets.mapped import CLASS_MAP, MappedSource
from raysense.references import Reference, import_factory, parse_reference

__all__ = ["UNSPLIT", "DataSource", "ImageReader", "Listing", "Progress", "open_data"]

_SOURCES = {
    "digits": ("arrays", "DigitsSource"),
    "npz": ("arrays", "NpzSource"),
    "folder": ("folder", "FolderSource"),
    "parquet": ("parquet", "ParquetSource"),
    "torchvision": ("mapstyle", "MapStyleSource"),
    "file": ("mapstyle", "MapStyleSource"),
    "module": ("mapstyle", "MapStyleSource"),
}
"""Modules and classes by scheme; those of images in files import torchvision, which takes over a second."""


def open_data(reference: str, splits: Sequence[str] = ()) -> DataSource:
    """Open the data that a reference names (see ``raysense.references``); nothing is listed or read yet.

    - ``digits``: scikit-learn's bundled digits; splits train and test (the default).
    - ``folder:PATH``: one folder per class (hidden ones are ignored); ``classes=FILE`` (one class per line, the folder
      name first) gives the order of the labels, else they are sorted; ``mode=rgb|gray``.
    - ``npz:FILE``: ``x=x&y=y`` name the arrays; ``layout=NHW|NHWC|NCHW`` where the shape is ambiguous.
    - ``parquet:PATH`` (a file or a folder of files): ``image=image&label=label&id=COLUMN`` name the columns;
      ``mode=rgb|gray``.
    - ``torchvision:CLASS``: the options go to the constructor; nothing is downloaded without ``download=true``.
    - ``file.py:factory``, ``module:factory``: returns a map-style data set of (image, label) or (image, label, id);
      a subclass of `DataSource` is used as it is.

    All take ``resize``, ``crop``, ``interpolation`` and ``antialias``, which replace the model's own preprocessing, and
    ``class_map=FILE``, which gives them the classes of other data (`raysense.datasets.mapped`).
    ``{split}`` in a path stands for the split's name; several splits are listed one after the other. Paths of folder,
    npz and parquet may be URIs of any filesystem that pyarrow or fsspec knows (``s3://bucket/key``), whose own options
    follow the ``?`` too.

    Raises UsageError where the reference is malformed, or a split is asked of data that has none.
    """
    parsed = parse_reference(reference, "data")
    others = {key: text for key, text in parsed.options.items() if key != CLASS_MAP}
    source = _open(replace(parsed, options=others), tuple(splits))
    return MappedSource(source, parsed.options[CLASS_MAP]) if CLASS_MAP in parsed.options else source


def _open(reference: Reference, splits: tuple[str, ...]) -> DataSource:
    """Open data under their own classes."""
    if reference.scheme in ("file", "module"):
        factory = import_factory(reference)
        if isinstance(factory, type) and issubclass(factory, DataSource):
            return factory(reference, splits)
    module, name = _SOURCES[reference.scheme]
    source: type[DataSource] = getattr(import_module(f"{__name__}.{module}"), name)
    return source(reference, splits)
