"""Shape sources: from a reference to the list of shapes by class, and the mesh of each, ready to be rendered."""

from __future__ import annotations

import difflib
import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from urllib.parse import parse_qsl, quote, urlencode

import pyarrow as pa
from pyarrow import fs

from raysense.datasets.paths import Location, open_location, read_bytes
from raysense.errors import UsageError
from raysense.references import local_path
from raysense.semantics.mesh_files import MESH_FORMATS, parse_mesh
from raysense.semantics.meshes import Mesh, cleaned, normalised
from raysense.semantics.procedural import PROCEDURAL_CLASSES, procedural_mesh
from raysense.working_directory import kept_path

_FORMS = "procedural, procedural?seed=0&variants=4&classes=cup,vase, folder:DIR, a folder or a mesh file"
_HASHED_STEP = 1e-6
"""Coordinates of procedural shapes are hashed in these steps, as machines differ in the last bit of a cosine."""


@dataclass(frozen=True)
class ShapeEntry:
    """One shape of a source.

    Attributes:
        shape_id: Unique and stable in the source, such as ``cup/0`` or ``chair/362f53ee``.
        class_name: Its class; empty where the source does not tell.
    """

    shape_id: str
    class_name: str


class ShapeSource(ABC):
    """Shapes that a reference names; cheap to open, so that every worker opens its own from ``reference``.

    Attributes:
        reference: The reference with local paths made absolute: it means the same in another working directory.
    """

    reference: str

    @abstractmethod
    def entries(self) -> list[ShapeEntry]:
        """All shapes, in an order that never changes: by class, then by name or number.

        Raises:
            UsageError: there are none, or they cannot be listed.
        """

    @abstractmethod
    def mesh(self, shape_id: str) -> Mesh:
        """A shape's mesh, cleaned and normalised.

        Raises:
            UsageError: there is no such shape, or its file is broken (see ``mesh_files.load_mesh``).
        """

    @abstractmethod
    def fingerprint(self, shape_ids: Iterable[str] | None = None) -> str:
        """SHA-256 over ids, classes and contents of all shapes, or of some; reads every one of their files."""

    def error(self, message: str) -> UsageError:
        """Return (not raise) an error about this source; ``message`` says what is wrong and the mend."""
        return UsageError(f"shapes {self.reference!r}: {message}")

    def selected(self, shape_ids: Iterable[str] | None = None) -> list[ShapeEntry]:
        """Some of the entries, in their order; all where None.

        Raises:
            UsageError: there is no such shape.
        """
        entries = self.entries()
        if shape_ids is None:
            return entries
        ids = [entry.shape_id for entry in entries]
        wanted = {self.known(one, ids) for one in shape_ids}
        return [entry for entry in entries if entry.shape_id in wanted]

    def known(self, shape_id: str, ids: Iterable[str]) -> str:
        """Return an id that is among ``ids``. Raises UsageError where it is not, with the closest ones."""
        ids = list(ids)
        if shape_id in ids:
            return shape_id
        close = difflib.get_close_matches(shape_id, ids, n=3, cutoff=0.5) or ids[:3]
        raise self.error(f"there is no shape {shape_id!r}; there are {len(ids)}, such as {', '.join(close)}")


class ProceduralShapes(ShapeSource):
    """The built-in library: ids ``class/variant``."""

    def __init__(self, seed: int = 0, variants: int = 4, classes: Sequence[str] | None = None) -> None:
        chosen = list(PROCEDURAL_CLASSES) if classes is None else sorted(set(classes))
        options = {"seed": str(seed), "variants": str(variants)}
        if classes is not None:
            options["classes"] = ",".join(chosen)
        self.reference = f"procedural?{urlencode(options, safe=',')}"
        for name in chosen:
            if name not in PROCEDURAL_CLASSES:
                raise self.error(f"there is no class {name!r}; choose from {', '.join(PROCEDURAL_CLASSES)}")
        if not chosen or variants < 1:
            raise self.error(
                f"{variants} variants of {len(chosen)} classes are no shapes; ask for at least one of each"
            )
        self._seed = seed
        self._shapes = {f"{name}/{variant}": (name, variant) for name in chosen for variant in range(variants)}

    def entries(self) -> list[ShapeEntry]:
        """All variants of the chosen classes."""
        return [ShapeEntry(shape_id, name) for shape_id, (name, _) in self._shapes.items()]

    def mesh(self, shape_id: str) -> Mesh:
        """Make one shape."""
        name, variant = self._shapes[self.known(shape_id, self._shapes)]
        return normalised(cleaned(procedural_mesh(name, variant, self._seed)))

    def fingerprint(self, shape_ids: Iterable[str] | None = None) -> str:
        """SHA-256 over ids and rounded meshes."""
        digest = hashlib.sha256()
        for entry in self.selected(shape_ids):
            mesh = self.mesh(entry.shape_id)
            digest.update(f"{entry.shape_id}\0{len(mesh.vertices)}\0".encode())
            digest.update((mesh.vertices / _HASHED_STEP).round().long().numpy().astype("<i8").tobytes())
            digest.update(mesh.faces.numpy().astype("<i8").tobytes())
        return digest.hexdigest()


class FolderShapes(ShapeSource):
    """Mesh files below a folder, or one mesh file, local or on any pyarrow filesystem.

    The class is the first folder below the root, or ``class_name`` for files that lie in the root itself. Ids are paths
    relative to the root without extension, or with it where two files differ by nothing else. Hidden files and folders
    are passed over.
    """

    def __init__(self, location: str, class_name: str = "", uri_options: str = "") -> None:
        self._location = f"{location}{uri_options}" if "://" in location else str(local_path(location))
        self._class_name = class_name
        # Options of the filesystem stay with a URI; the class is ours.
        extra = [f"class={quote(class_name)}"] if class_name else []
        head, _, query = self._location.partition("?") if "://" in location else (kept_path(location), "", "")
        query = "&".join(filter(None, (query, *extra)))
        self.reference = f"folder:{head}?{query}" if query else f"folder:{head}"

    def entries(self) -> list[ShapeEntry]:
        """All mesh files."""
        return [ShapeEntry(shape_id, self._class_of(path)) for shape_id, path in self._paths.items()]

    def mesh(self, shape_id: str) -> Mesh:
        """Load one shape."""
        path = self._paths[self.known(shape_id, self._paths)]
        suffix = PurePosixPath(path or self._root[0][1]).suffix
        return normalised(cleaned(parse_mesh(self._read(path), suffix, shape_id)))

    def fingerprint(self, shape_ids: Iterable[str] | None = None) -> str:
        """SHA-256 over ids, classes and files."""
        digest = hashlib.sha256()
        for entry in self.selected(shape_ids):
            content = hashlib.sha256(self._read(self._paths[entry.shape_id])).hexdigest()
            digest.update(f"{entry.shape_id}\0{entry.class_name}\0{content}\0".encode())
        return digest.hexdigest()

    @cached_property
    def _root(self) -> tuple[Location, bool]:
        """Filesystem and path, and whether it is a folder."""
        try:
            filesystem, path = open_location(self._location, "shapes")
            found = filesystem.get_file_info(path).type
        except (OSError, pa.ArrowException) as error:
            raise self.error(f"{self._location} cannot be opened ({error}); correct the path") from error
        if found == fs.FileType.NotFound:
            raise self.error(f"there is nothing at {self._location}; name {_FORMS}")
        return (filesystem, path), found == fs.FileType.Directory

    @cached_property
    def _paths(self) -> dict[str, str]:
        """Path relative to the root by shape id, sorted by id."""
        (filesystem, root), is_folder = self._root
        if not is_folder:
            name = PurePosixPath(root)
            if name.suffix.lower() not in MESH_FORMATS:
                raise self.error(f"{name.name} is no mesh file; give a folder or a file that ends in {_endings()}")
            return {name.stem: ""}
        try:
            found = filesystem.get_file_info(fs.FileSelector(root, recursive=True))
            files = [one.path[len(root) + 1 :] for one in found if one.type == fs.FileType.File]
        except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
            raise self.error(f"{self._location} cannot be listed ({error}); mend its permissions or names") from error
        meshes = [path for path in files if _visible(path) and PurePosixPath(path).suffix.lower() in MESH_FORMATS]
        if not meshes:
            raise self.error(f"{self._location} has no mesh files; name a folder of files that end in {_endings()}")
        short = Counter(_without_extension(path) for path in meshes)
        ids = {path if short[_without_extension(path)] > 1 else _without_extension(path): path for path in meshes}
        return dict(sorted(ids.items()))

    def _class_of(self, path: str) -> str:
        return path.partition("/")[0] if "/" in path else self._class_name

    def _read(self, path: str) -> bytes:
        (filesystem, root), _ = self._root
        try:
            return read_bytes(filesystem, f"{root}/{path}" if path else root)
        except OSError as error:
            raise self.error(f"{path or root} cannot be read ({error}); mend or remove the file") from error


def open_shapes(text: str) -> ShapeSource:
    """Open the shapes that a reference names; nothing is listed or read yet.

    - ``procedural``: the built-in library; ``seed=0``, ``variants=4`` (of each class), ``classes=cup,vase``.
    - ``folder:DIR`` or ``DIR``: one folder of OBJ, PLY or GLB files by class, at any depth below it; files that lie in
      DIR itself, or a single mesh file, have the class that ``class=NAME`` gives, or none. DIR may be the URI of any
      pyarrow filesystem, whose own options follow the ``?`` too.

    Raises:
        UsageError: the reference is malformed, or has options that its kind does not.
    """
    head, _, query = text.strip().partition("?")
    options = _options(query, text)
    if head == "procedural":
        classes = options.pop("classes", None)
        numbers = {key: _integer(options.pop(key), key, text) for key in ("seed", "variants") if key in options}
        _refuse(options, text, "seed, variants and classes")
        return ProceduralShapes(**numbers, classes=classes.split(",") if classes is not None else None)
    target = head.removeprefix("folder:")
    if not target:
        raise UsageError(f"shapes {text!r}: nothing is named; write {_FORMS}")
    class_name = options.pop("class", "")
    if "://" not in target:
        _refuse(options, text, "class")
    return FolderShapes(target, class_name, f"?{urlencode(options)}" if options else "")


def absolute_shapes(text: str) -> str:
    """The same reference with a local path made absolute and defaults written out.

    Raises:
        UsageError: as `open_shapes`.
    """
    return open_shapes(text).reference


def _options(query: str, text: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise UsageError(f"shapes {text!r}: option {query!r} is malformed; write key=value&key=value") from error
    options = dict(pairs)
    if len(options) < len(pairs):
        raise UsageError(f"shapes {text!r}: an option is given twice; give each once")
    return options


def _refuse(options: dict[str, str], text: str, known: str) -> None:
    for key in options:
        raise UsageError(f"shapes {text!r}: there is no option {key}; there are {known}")


def _integer(value: str, key: str, text: str) -> int:
    try:
        return int(value)
    except ValueError as error:
        raise UsageError(f"shapes {text!r}: {key}={value} is no whole number; write {key}=4") from error


def _visible(path: str) -> bool:
    return not path.startswith(".") and "/." not in path


def _without_extension(path: str) -> str:
    return str(PurePosixPath(path).with_suffix(""))


def _endings() -> str:
    *others, last = MESH_FORMATS
    return f"{', '.join(others)} or {last}"
