"""Rows of committed units in the order of the units, read ahead by threads, in bounded memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import TypeVar

import pyarrow as pa

from raysense.errors import first_line
from raysense.store.files import Directory
from raysense.store.naming import COMMITS
from raysense.store.retries import patience_of_environment, patiently
from raysense.store.snapshot import Piece

_LOCAL_THREADS, _REMOTE_THREADS = 4, 32
_LOCAL_GROUP = 32
_AHEAD_BYTES, _GROUP_BYTES = 64 * 2**20, 2**20
_ONE_THREAD = pa.ipc.IpcReadOptions(use_threads=False)


Item = TypeVar("Item")
Result = TypeVar("Result")


def threads_for(directory: Directory) -> int:
    """How many threads keep the directory's filesystem busy: an object store is bounded by its latency."""
    return _LOCAL_THREADS if directory.is_local else _REMOTE_THREADS


def for_each(
    directory: Directory, pool: ThreadPoolExecutor, work: Callable[[Item], Result], items: Sequence[Item]
) -> Iterator[Result]:
    """Results of some work on each file of many, in order; on a local disk several at a time, where threads cost more."""
    group = _LOCAL_GROUP if directory.is_local else 1

    def several(start: int) -> list[Result]:
        return [work(item) for item in items[start : start + group]]

    for results in pool.map(several, range(0, len(items), group)):
        yield from results


def read_pieces(
    directory: Directory,
    pieces: Sequence[Piece],
    schema: pa.Schema,
    pool: ThreadPoolExecutor | None = None,
) -> Iterator[tuple[Piece, pa.Table]]:
    """Pieces with their rows, in order. So much is read ahead as fits into some 64 MB, going by what was read so far.

    Args:
        directory: The scan directory.
        pieces: What to read.
        schema: Schema of the table, or of some of its columns. Columns that a file has beyond it are not read, those that
            it lacks are null.
        pool: Threads to read with; None for own ones.

    Raises:
        OSError: a file is missing (FileNotFoundError) or cannot be read.
        pyarrow.ArrowInvalid: a file is damaged.
    """
    waiting: deque[Future[list[tuple[Piece, pa.Table]]]] = deque()
    threads = threads_for(directory)
    start = size = 0
    group = 1  # the first piece alone says how large they are

    def several(pieces: Sequence[Piece]) -> list[tuple[Piece, pa.Table]]:
        return [(piece, read_piece(directory, piece, schema)) for piece in pieces]

    with ExitStack() as stack:
        if pool is None:
            pool = stack.enter_context(ThreadPoolExecutor(threads, "raysense-read"))
        stack.callback(lambda: [future.cancel() for future in waiting])
        while True:
            ahead = max(1, min(2 * threads, _AHEAD_BYTES // max(1, size * group)))
            while start < len(pieces) and len(waiting) < ahead:
                waiting.append(pool.submit(several, pieces[start : start + group]))
                start += group
                if not size:
                    break
            if not waiting:
                return
            found = waiting.popleft().result()
            size = max(1, found[0][1].get_total_buffer_size(), size // 2)
            group = max(1, min(_LOCAL_GROUP, _GROUP_BYTES // size)) if directory.is_local else 1
            yield from found


def read_piece(directory: Directory, piece: Piece, schema: pa.Schema) -> pa.Table:
    """Rows of one piece, with the columns of a schema.

    Raises:
        OSError: the file is missing (FileNotFoundError) or cannot be read.
        pyarrow.ArrowInvalid: the file is damaged; the message names it.
    """
    try:
        return _read(directory, piece, schema)
    except pa.ArrowInvalid as error:
        message = f"{directory.location}/{piece.file} is damaged: {first_line(error)}"
        if piece.batches is None:
            commit = f"{COMMITS}/{piece.file.rpartition('/')[2].removesuffix('.arrow')}.json"
            message += f"; remove {commit}, and `raysense resume` computes unit {piece.units[0]} again"
        raise pa.ArrowInvalid(message) from error


def _read(directory: Directory, piece: Piece, schema: pa.Schema) -> pa.Table:
    if piece.batches is None:
        return _rows(pa.py_buffer(directory.read(piece.file)), piece, schema)
    path = directory.path(piece.file)
    if directory.is_local:
        return _rows(pa.memory_map(path), piece, schema)
    return patiently(
        lambda: _rows(directory.filesystem.open_input_file(path), piece, schema),
        f"{directory.root}: reading {piece.file}",
        patience_of_environment(),
        granted=True,  # as the manifest was, which names the file
    )


def _rows(source: pa.Buffer | pa.NativeFile, piece: Piece, schema: pa.Schema) -> pa.Table:
    reader = pa.ipc.open_file(source, options=_ONE_THREAD)
    wanted = [index for index, name in enumerate(reader.schema.names) if name in schema.names]
    if 0 < len(wanted) < len(reader.schema):
        reader = pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(included_fields=wanted, use_threads=False))
    with reader:
        there = reader.num_record_batches
        first, last = piece.batches or (0, there)
        if last > there:
            raise pa.ArrowInvalid(f"it has {there} record batches, not {last}")
        rows = pa.Table.from_batches([reader.get_batch(index) for index in range(first, last)], reader.schema)
    if piece.rows is not None:
        count = int(piece.rows.sum())
        if rows.num_rows < piece.skip + count:
            raise pa.ArrowInvalid(f"it has only {rows.num_rows} rows in batches {first} to {last - 1}")
        rows = rows.slice(piece.skip, count)
    return _conformed(rows, schema)


def _conformed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    if table.schema.equals(schema, check_metadata=True):
        return table
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)
