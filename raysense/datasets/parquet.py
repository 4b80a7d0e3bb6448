"""``parquet:``: encoded images and labels in Parquet files."""

from __future__ import annotations

import hashlib
from functools import lru_cache, partial
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from pyarrow import fs

from raysense.datasets.base import UNSPLIT, ImageReader, PerProcess, Progress, SplitListing
from raysense.datasets.decoding import decode
from raysense.datasets.paths import PathSource, open_locations

_ROW_GROUPS_KEPT = 2


class ParquetSource(PathSource):
    """A Parquet file, or a folder of them, with labels and encoded images (bytes, or Hugging Face's struct).

    Ids are ``file/0000012``, or come from the column that ``id=`` names.
    """

    defaults: ClassVar = {"image": "image", "label": "label", "id": "", "mode": "rgb"}

    def list_split(self, split: str | None, progress: Progress) -> SplitListing:
        """Read the labels of all files, in the order of their paths."""
        (filesystem, root), info = self.open_existing(split)
        files = [info] if info.type == fs.FileType.File else _parquet_files(filesystem, root)
        if not files:
            raise self.reference.error(f"{self.location(split)} holds no .parquet files; correct the path")
        ids: list[str] = []
        labels: list[np.ndarray] = []
        names: list[str] = []
        counts: list[int] = []
        groups: list[np.ndarray] = []
        rows: list[np.ndarray] = []
        digest = hashlib.sha256()
        for file in files:
            name = file.path[len(root) + 1 :]  # empty where the location is the file itself
            with filesystem.open_input_file(file.path) as stream:
                parquet = self._open(stream, file.path)
                metadata = parquet.metadata
                table = parquet.read([column for column in (self.settings["label"], self.settings["id"]) if column])
            labels.append(self._labels(table, file.path))
            prefix = "/".join(part for part in (split, name or file.base_name) if part)
            ids += self._ids(table, prefix, file.path)
            sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
            groups.append(np.repeat(np.arange(len(sizes)), sizes))
            rows += [np.arange(size) for size in sizes]
            names.append(name)
            counts.append(metadata.num_rows)
            digest.update(f"{name} {file.size}\n".encode())
            progress(len(ids), None)
        return SplitListing(
            split=split or UNSPLIT,
            sample_ids=ids,
            labels=np.concatenate(labels),
            content=digest.digest(),
            columns={
                "file": pa.array(np.repeat(np.array(names, dtype=object), counts), pa.string()),
                "row_group": pa.array(np.concatenate(groups), pa.int64()),
                "row": pa.array(np.concatenate([*rows, np.zeros(0, np.int64)]), pa.int64()),
            },
        )

    def reader(self, table: pa.Table) -> ImageReader:
        """Return a reader that keeps the last row groups."""
        return ParquetReader(table, self.locations(), self.settings["image"], self.settings["mode"])

    def _open(self, stream: pa.NativeFile, path: str) -> pq.ParquetFile:
        """Open a file and check that it has the columns."""
        try:
            parquet = pq.ParquetFile(stream)
        except pa.ArrowInvalid as error:
            raise self.reference.error(f"{path} is not a Parquet file ({error}); remove or replace it") from error
        schema = parquet.schema_arrow
        for option in ("image", "label", "id"):
            column = self.settings[option]
            if column and column not in schema.names:
                raise self.reference.error(
                    f"{path} has no column {column} but {', '.join(schema.names)}; give {option}=NAME"
                )
        image = schema.field(self.settings["image"]).type
        content = (
            image.field("bytes").type if pa.types.is_struct(image) and image.get_field_index("bytes") >= 0 else image
        )
        if not (pa.types.is_binary(content) or pa.types.is_large_binary(content)):
            message = f"column {self.settings['image']} of {path} is {image}"
            raise self.reference.error(f"{message}; store encoded images as bytes, or give image=NAME")
        return parquet

    def _labels(self, table: pa.Table, path: str) -> np.ndarray:
        """Return the labels of a file."""
        column = table[self.settings["label"]]
        if column.null_count:
            raise self.reference.error(f"column {self.settings['label']} of {path} has missing labels; fill them in")
        return np.asarray(column)

    def _ids(self, table: pa.Table, prefix: str, path: str) -> list[str]:
        """Return the sample ids of a file."""
        name = self.settings["id"]
        if not name:
            return [f"{prefix}/{row:07d}" for row in range(table.num_rows)]
        column = table[name]
        if column.null_count:
            raise self.reference.error(f"column {name} of {path} has missing ids; fill them in")
        return [str(value) for value in column.to_pylist()]


class ParquetReader(ImageReader):
    """Decodes images of Parquet files; consecutive rows cost one read of their row group."""

    in_memory = False

    def __init__(self, table: pa.Table, locations: dict[str, str], image: str, mode: str) -> None:
        super().__init__(table)
        self._files = PerProcess(partial(_RowGroups, locations, image))
        self._mode = mode

    def read(self, row: int) -> torch.Tensor:
        """Return the decoded image, uint8."""
        split, file = self.cell("split", row), self.cell("file", row)
        column = self._files.get().column(split, file, self.position("row_group", row))
        data = column[self.position("row", row)].as_py()
        if data is None:
            raise self.failure(row, "it has no image bytes")
        try:
            return decode(data, self._mode)
        except ValueError as error:
            raise self.failure(row, error) from error


class _RowGroups:
    """The image columns of the row groups read last."""

    def __init__(self, locations: dict[str, str], image: str) -> None:
        self._locations = open_locations(locations)
        self._image = image
        self.column = lru_cache(_ROW_GROUPS_KEPT)(self._column)

    def _column(self, split: str, file: str, row_group: int) -> pa.ChunkedArray:
        """Return the encoded images of one row group."""
        filesystem, root = self._locations[split]
        with filesystem.open_input_file(f"{root}/{file}" if file else root) as stream:
            parquet = pq.ParquetFile(stream)
            nested = pa.types.is_struct(parquet.schema_arrow.field(self._image).type)
            column = parquet.read_row_group(row_group, [f"{self._image}.bytes" if nested else self._image])[self._image]
        return pc.struct_field(column, "bytes") if nested else column


def _parquet_files(filesystem: fs.FileSystem, root: str) -> list[fs.FileInfo]:
    """Return the Parquet files below a folder, sorted by path; names that begin with . or _ are not data."""
    entries = filesystem.get_file_info(fs.FileSelector(root, recursive=True))
    files = [entry for entry in entries if entry.type == fs.FileType.File and entry.path.endswith(".parquet")]
    return sorted((file for file in files if file.base_name[0] not in "._"), key=lambda file: file.path)
