"""Files of others are data: nothing that comes with a model, a data set or a store is run."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

import raysense
from raysense.datasets import open_data
from raysense.errors import RaysenseError, UsageError
from raysense.models import load_model
from raysense.store.store import Store

ROOT = Path(__file__).resolve().parents[1]


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._mark),)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """What hostile files would make."""
    return tmp_path / "run"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported network, with a free batch size."""
    path = tmp_path_factory.mktemp("program") / "model.pt2"
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(network, (torch.rand(2, 1, 8, 8),), dynamic_shapes=({0: batch},))
    torch.export.save(exported, path)
    return path


def changed(program: Path, out: Path, change: Callable[[str, bytes], bytes], **added: bytes) -> str:
    """A copy of an archive with changed members and others added."""
    with zipfile.ZipFile(program) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
        folder = old.namelist()[0].partition("/")[0]
        for name, data in added.items():
            new.writestr(f"{folder}/{name}", data)
    return str(out)


def refused(reference: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        load_model(reference)


def test_an_exported_network_is_loaded(program: Path) -> None:
    assert load_model(str(program)).module(torch.rand(5, 1, 8, 8)).shape == (5, 3)


def test_exported_programs_cannot_unpickle(program: Path, tmp_path: Path, mark: Path) -> None:
    for protocol in (0, 2):
        hostile = pickle.dumps(Payload(mark), protocol=protocol)

        def pickled(name: str, data: bytes, hostile: bytes = hostile) -> bytes:
            if name.endswith("weights_config.json"):
                return data.replace(b'"use_pickle": false', b'"use_pickle": true', 1)
            return hostile if name.endswith("weight_0") else data

        refused(changed(program, tmp_path / "a.pt2", pickled), "weight_0' holds more than tensors")
        buffer = io.BytesIO()
        torch.save(Payload(mark), buffer, pickle_protocol=2)
        saved = buffer.getvalue()

        def given(name: str, data: bytes, saved: bytes = saved) -> bytes:
            return saved if "sample_inputs" in name else data

        inputs = changed(program, tmp_path / "b.pt2", given)
        refused(inputs, "holds more than tensors")

        def opaque(name: str, data: bytes) -> bytes:
            if not name.endswith("constants_config.json"):
                return data
            payload = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
            return json.dumps({"config": {"x": payload}}).encode()

        refused(
            changed(program, tmp_path / "c.pt2", opaque, **{"data/constants/opaque_obj_0": hostile}), "holds an object"
        )
    compiled = changed(program, tmp_path / "d.pt2", lambda _, data: data, **{"data/aotinductor/model/x.so": b"ELF"})
    refused(compiled, "neither a graph nor a tensor")
    assert not mark.exists()


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').mkdir('{}')",
        "S(\"__import__('os').mkdir('{}')\")",
        "Add(\"__import__('os').mkdir('{}')\")",
        "Symbol('x', positive=__import__('os').mkdir('{}'))",
        "[x for x in ().__class__.__bases__]",
        "(lambda: 1)()",
    ],
)
def test_exported_programs_cannot_evaluate(program: Path, tmp_path: Path, mark: Path, expression: str) -> None:
    code = json.dumps(expression.replace("{}", str(mark))).encode()

    def size(name: str, data: bytes) -> bytes:
        return re.sub(rb'"expr_str": *"[^"]*"', lambda _: b'"expr_str": ' + code, data)

    def guard(name: str, data: bytes) -> bytes:
        return re.sub(rb'"guards_code": *\[[^\]]*\]', lambda _: b'"guards_code": [' + code + b"]", data)

    refused(changed(program, tmp_path / "a.pt2", size), "more than arithmetic")
    refused(changed(program, tmp_path / "b.pt2", guard), "more than a comparison")
    assert not mark.exists()


def renamed(old: str, new: str) -> Callable[[str, bytes], bytes]:
    """Another text in the graph of a program."""
    return lambda name, data: (
        data.replace(json.dumps(old).encode(), json.dumps(new).encode()) if name.endswith("model.json") else data
    )


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("input", "input={code}", "its name .* is not one that torch.export gives"),
        ("relu", "relu={code};relu", "its name .* is not one"),
        ("0.weight", '0").weight, {code}, getattr(self, "0', "its parameter_name .* is not one"),
        ("torch.ops.aten.relu.default", "torch.os.mkdir", "its target .* is not one"),
        ("torch.ops.aten.relu.default", "_operator.methodcaller", "its target .* is not one"),
        (
            '[1, {"type": null, "context": null, "children_spec": []}]',
            '[1, {"type": "builtins.dict", "context": "[{\\"__enum__\\": true, \\"fqn\\": \\"evil:X\\"}]", '
            '"children_spec": []}]',
            "structure .* is more than tuples, lists and dictionaries",
        ),
    ],
)
def test_names_in_exported_programs_are_no_code(
    program: Path, tmp_path: Path, mark: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, why: str
) -> None:
    """Torch writes names into source code, and imports what the structure of the output names."""
    (tmp_path / "evil.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    monkeypatch.syspath_prepend(tmp_path)
    new = new.replace("{code}", f"__import__('os').mkdir({str(mark)!r})")
    refused(changed(program, tmp_path / "a.pt2", renamed(old, new)), why)
    assert not mark.exists()


def test_texts_of_guards_stay_texts(program: Path, tmp_path: Path, mark: Path) -> None:
    """Torch puts them into the message of an assertion, in quotation marks that they could end."""
    code = list(f"__import__('os').mkdir({str(mark)!r})".encode())
    guard = json.dumps(f"""L['input'].size()[0] <= 64 and '", exec(bytes({code})), "' != 'a'""").encode()

    def guarded(name: str, data: bytes) -> bytes:
        return re.sub(rb'"guards_code": *\[[^\]]*\]', lambda _: b'"guards_code": [' + guard + b"]", data)

    refused(changed(program, tmp_path / "a.pt2", guarded), "more than a comparison")
    assert not mark.exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_an_archive_shows_everybody_the_same(program: Path, tmp_path: Path, mark: Path) -> None:
    """Torch's reader finds members whatever their capital letters, and others read other parts of a file."""
    buffer = io.BytesIO()
    torch.save(Payload(mark), buffer)
    hostile = buffer.getvalue()

    def built(name: str, member: Callable[[str, bytes], dict[str, bytes]]) -> str:
        with zipfile.ZipFile(program) as old, zipfile.ZipFile(tmp_path / name, "w") as new:
            for each in old.namelist():
                for inner, data in member(each, old.read(each)).items():
                    new.writestr(inner, data)
        return str(tmp_path / name)

    def capital(name: str, data: bytes) -> dict[str, bytes]:
        return {name.replace("model.pt", "model.PT"): hostile} if "sample_inputs" in name else {name: data}

    def both(name: str, data: bytes) -> dict[str, bytes]:
        return {name: data, name.replace("model.pt", "MODEL.pt"): hostile} if "sample_inputs" in name else {name: data}

    refused(built("a.pt2", capital), "neither a graph nor a tensor")
    refused(built("b.pt2", both), "two members of the same name")
    refused(built("c.pt2", lambda name, data: {name: data, "other/version": b"8.1"}), "is damaged|not the same")
    # The same file with a second table of contents, to which the end record points: Python reads the one before the end.
    good, bad = program.read_bytes(), Path(built("d.pt2", lambda name, data: {name: hostile})).read_bytes()
    (tmp_path / "e.pt2").write_bytes(bad + good)
    refused(str(tmp_path / "e.pt2"), "is refused")
    (tmp_path / "f.pt2").write_bytes(good[: len(good) // 2])
    refused(str(tmp_path / "f.pt2"), "not a torch.export file|is damaged")
    assert not mark.exists()


def test_what_networks_need_is_not_refused(tmp_path: Path) -> None:
    """Tied weights, buffers, constants, subgraphs, guards, einsum, names that are no identifiers, extra files."""

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict({"conv-1": nn.Linear(64, 64), "a b": nn.Linear(64, 64)})
            self.parts["a b"].weight = self.parts["conv-1"].weight
            self.register_buffer("scale", torch.tensor(2.0), persistent=False)
            self.constant = torch.ones(64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch._check(x.shape[0] <= 4096)
            flat = self.parts["a b"](self.parts["conv-1"](x.flatten(1))) * self.scale + self.constant
            with torch.no_grad():
                factor = flat.abs().mean()
            mixed = torch.einsum("ni,ij->nj", flat, torch.eye(64))
            turned: torch.Tensor = torch.cond(factor > 0, torch.sin, torch.cos, (mixed,))
            return turned.reshape(x.shape[0], 4, -1).sum(-1)

    network = Network().eval()
    shapes = ({0: torch.export.Dim("batch", min=2, max=4096)},)
    exported = torch.export.export(network, (torch.rand(4, 1, 8, 8),), dynamic_shapes=shapes)
    torch.export.save(exported, tmp_path / "model.pt2", extra_files={"note.txt": "trained on Tuesday"})
    images = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(load_model(str(tmp_path / "model.pt2")).module(images), network(images))


def test_checkpoints_hold_weights_only(tmp_path: Path, mark: Path) -> None:
    torch.save({"state_dict": Payload(mark)}, tmp_path / "w.pt")
    factory = tmp_path / "net.py"
    factory.write_text("from torch import nn\ndef net(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n")
    refused(f"{factory}:net?checkpoint={tmp_path / 'w.pt'}", "checkpoint")
    assert not mark.exists()


def test_arrays_are_not_unpickled(tmp_path: Path, mark: Path) -> None:
    images = np.empty(2, dtype=object)
    images[:] = [Payload(mark), Payload(mark)]
    np.savez(tmp_path / "data.npz", x=images, y=np.zeros(2, int))
    with pytest.raises(UsageError, match=r"pickle|object"):
        open_data(f"npz:{tmp_path / 'data.npz'}", ()).list()
    assert not mark.exists()


def test_reading_a_scan_of_somebody_else_runs_nothing_of_it(tmp_path: Path, mark: Path) -> None:
    """Its document names a kind, a model and data that are Python files; status, SQL and report leave them alone."""
    evil = tmp_path / "evil.py"
    evil.write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    schema = pa.schema([("number", pa.int64())])
    spec = {"model": f"{evil}:model", "data": f"{evil}:data"}
    document = {
        "kind": f"{evil}:Scan", "spec": spec, "facts": {"model": {"reference": spec["model"]}}, "unit_size": 1, "units": 1,
        "items": 1, "schemas": raysense.store.store.encode_schemas({"numbers": schema}),
    }  # fmt: skip
    store = Store.create(tmp_path / "scan", document, pa.table({"number": [0]}))
    store.commit("u", {"numbers": pa.table({"number": [7]}, schema=schema)}, {"items": 1, "bad_items": 0})
    assert raysense.status(store.location).complete
    assert raysense.open_results(store.location).query("SELECT number FROM numbers").rows() == [{"number": 7}]
    raysense.write_report([store.location], tmp_path / "report.html")
    assert not mark.exists()
    with pytest.raises(RaysenseError):  # to finish it means to run it, which the user has asked for
        raysense.resume(store.location)


def test_names_in_a_store_cannot_leave_it(tmp_path: Path) -> None:
    schema = pa.schema([("number", pa.int64())])
    table = pa.table({"number": [7]}, schema=schema)
    store = Store.create(
        tmp_path / "scan",
        {"kind": "k", "spec": {}, "facts": {}, "unit_size": 1, "units": 1, "items": 1, "schemas": {}},
        pa.table({"number": [0]}),
    )
    for unit in ("../x", "a/b", "..", "", "/etc/x", "a\0b", "a~b"):
        with pytest.raises(ValueError, match="plain file name"):
            store.commit(unit, {"numbers": table}, {})
        with pytest.raises(ValueError, match="plain file name"):
            store.failures.write_failure(unit, [])
    assert not (tmp_path / "x").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"scan"}


def test_no_source_file_unpickles_or_evaluates() -> None:
    """What runs code from data is not used, so that a later change cannot bring it in unseen."""
    forbidden = re.compile(
        r"^\s*(import|from) (pickle|dill|cloudpickle|marshal|shelve)\b|\bpickle\.loads?\(|allow_pickle=True|"
        r"weights_only=False|(?<![.\w])(eval|exec)\(|yaml\.(unsafe_|full_)?load\(|PyExtensionType"
    )
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for folder in ("raysense", "jobs")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if forbidden.search(line) or ("torch.load(" in line and "weights_only=True" not in line)
    ]
    assert found == []
