"""Training a network for a study: saved once, read by every worker; killed at any moment, it goes on from the last epoch.

The trained network is a model reference, ``raysense.studies.training:trained?model=REFERENCE&checkpoint=FILE``: the
network of another reference (quoted where it has options) with the weights of a file, which may be a URI.
"""

from __future__ import annotations

import io
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import torch
from torch import Tensor, nn

from raysense.commands.options import progress_callback
from raysense.devices import resolve_device
from raysense.errors import RaysenseError, UsageError, first_line
from raysense.models import LoadedModel, load_model
from raysense.networks import ExportedModel
from raysense.references import absolute_reference
from raysense.store.files import Directory
from raysense.studies.examples import Examples, Feed, accuracy, epoch_seed, open_examples
from raysense.studies.recipes import Trained, TrainingTask
from raysense.training import Training

WEIGHTS, LAST, RECORD, CURVE, CHECKPOINT = "network.pt", "last.pt", "training.json", "curve.json", "checkpoint.pt"


def trained(model: str, checkpoint: str) -> nn.Module:
    """Return the network of a model reference with the weights of a file that `train` wrote."""
    loaded = load_model(model)
    folder, _, name = checkpoint.rpartition("/")
    try:
        loaded.module.load_state_dict(_read(Directory(folder or ".", argument="checkpoint"), name))
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


def finished(task: TrainingTask) -> Trained | None:
    """Return what `train` has made of a task before; None where it is still to be done, or to be gone on with.

    Raises:
        UsageError: the network cannot be trained, or the directory holds one that was trained otherwise.
    """
    return _Lesson(task, "cpu").finished()


def curve(task: TrainingTask) -> list[dict[str, Any]]:
    """Return the epochs done of a task, as in `Trained.curve`, also while it is trained elsewhere."""
    try:
        entries: list[dict[str, Any]] = Directory(task.out).read_json(CURVE)
    except FileNotFoundError:
        return []
    return entries


def train(task: TrainingTask, device: str = "auto", quiet: bool = True) -> Trained:
    """Train a network and save it; goes on where an earlier call was killed, does nothing where one came to its end.

    On a CPU, with as many threads, the weights are the same to the last bit whether or not it was killed in between.

    Args:
        task: What to train, and where to save it.
        device: ``auto``, ``cpu`` or ``cuda``, of this process.
        quiet: Whether to show no progress.

    Raises:
        UsageError: the network cannot be trained, or the directory holds one that was trained otherwise.
        RaysenseError: training diverged.
    """
    lesson = _Lesson(task, resolve_device(device))
    return lesson.finished() or lesson.train(quiet)


class _Lesson:
    """A task with its network and its data opened, on a device."""

    def __init__(self, task: TrainingTask, device: str) -> None:
        self._task = task
        self._recipe = recipe = task.recipe
        self._device = device
        self._folder = Directory(task.out)
        self._model = loaded = load_model(task.model, device)
        identity: dict[str, Any] = {"model": loaded.fingerprint, **recipe.as_dict()}
        examples, identity["data"] = open_examples(task.data, task.splits, loaded.preprocessing)
        self._held_out: Examples | None = None
        identity["validation data"] = None
        if task.validation is not None:
            data, split = task.validation
            self._held_out, identity["validation data"] = open_examples(data, (split,), loaded.preprocessing)
        elif recipe.keep == "best":
            raise UsageError("validation: the best epoch is asked for, and nothing to tell it by; name a split")
        if any(isinstance(part, ExportedModel) for part in loaded.module.modules()):
            raise UsageError(
                f"model {task.model!r} is an exported program, which cannot be trained; name the network's own factory"
            )
        if not loaded.trainable:
            raise UsageError(
                f"model {task.model!r} cannot be trained: none of its parameters requires gradients; leave some trainable"
            )
        if len(examples) < 2:
            raise UsageError(f"data {task.data!r}: there is one image only; training needs two or more")
        self._examples = examples.with_shuffled_labels(recipe.seed) if recipe.shuffled_labels else examples
        self._identity = identity

    def finished(self) -> Trained | None:
        """What the directory holds; UsageError where that was trained otherwise."""
        if not self._folder.exists(RECORD) or not self._folder.exists(WEIGHTS):
            return None
        record = self._folder.read_json(RECORD)
        _check_same(record.pop("task"), self._identity, self._folder)
        self._folder.delete(CHECKPOINT)
        reference = trained_reference(self._task.model, self._task.out)
        return Trained(reference, **record, curve=tuple(curve(self._task)))

    def train(self, quiet: bool) -> Trained:
        """Train, a checkpoint after every epoch; then save the network used and the record."""
        module, recipe = self._model.module, self._recipe
        feed = Feed(self._examples, recipe.batch_size, self._device, recipe.seed)
        devices = [torch.cuda.current_device()] if self._device == "cuda" else []
        with torch.random.fork_rng(devices=devices), progress_callback("training", quiet) as tell:
            _make_trainable(self._model)
            training = Training(module, recipe.method, recipe.epochs, len(feed))
            progress = self._resumed(training)
            try:
                while training.done < recipe.epochs:
                    began = time.perf_counter()
                    torch.manual_seed(epoch_seed(recipe.seed, training.done))
                    module.train()
                    epoch = training.epoch(feed(training.done), tell)
                    module.eval()
                    entry = {
                        "epoch": training.done,
                        "learning_rate": epoch.learning_rate,
                        "loss": epoch.loss,
                        "train_accuracy": epoch.accuracy,
                        "validation_accuracy": self._accuracy(self._held_out),
                        "seconds": time.perf_counter() - began,
                        "unreadable": feed.unreadable,
                    }
                    progress.add(module, entry)
                    state = {"task": self._identity, "training": training.state(), **vars(progress)}
                    self._folder.write(CHECKPOINT, _bytes(state))
                    self._folder.write_json(CURVE, progress.curve)
            except FloatingPointError as error:
                mend = f"lower --learning-rate {recipe.method.learning_rate:g}"
                raise RaysenseError(f"training diverged ({error}); {mend}") from error
            finally:
                module.eval().requires_grad_(False)
            return self._saved(progress)

    def _resumed(self, training: Training) -> _Progress:
        """Bring a training to where its last checkpoint was."""
        if not self._folder.exists(CHECKPOINT):
            return _Progress(self._recipe.keep)
        try:
            state = _read(self._folder, CHECKPOINT)
        except Exception as error:  # a damaged file can raise anything
            place = f"{self._folder.location}/{CHECKPOINT}"
            raise UsageError(f"{place} cannot be loaded ({first_line(error)}); remove it to train anew") from error
        _check_same(state.pop("task"), self._identity, self._folder)
        training.restore(state.pop("training"))
        return _Progress(**state)

    def _saved(self, progress: _Progress) -> Trained:
        """Save the network that is used, and the record last; what going on needed is removed."""
        module, folder, last = self._model.module, self._folder, progress.curve[-1]
        used = last
        if progress.weights is not None:
            used = progress.curve[progress.best - 1]
            if used is not last:
                folder.write(LAST, _bytes(_weights(module)))
            module.load_state_dict(progress.weights)
        folder.write(WEIGHTS, _bytes(_weights(module)))
        record = {
            "loss": last["loss"],
            "accuracy": used["validation_accuracy"],
            "unreadable": last["unreadable"],
            "train_accuracy": self._accuracy(self._examples),
            "epoch": used["epoch"],
        }
        folder.write_json(CURVE, progress.curve)
        folder.write_json(RECORD, {"task": self._identity, **record})
        result = self.finished()
        assert result is not None, "the record has just been written"
        return result

    def _accuracy(self, examples: Examples | None) -> float | None:
        if examples is None:
            return None
        return accuracy(self._model.module, Feed(examples, self._recipe.batch_size, self._device)())


@dataclass
class _Progress:
    """The epochs so far, and the best network among them where it is asked for.

    Attributes:
        keep: The network of which epoch is used.
        curve: One entry an epoch.
        best: The epoch, from 1, of the best network; 0 before the first.
        weights: Its weights.
    """

    keep: str
    curve: list[dict[str, Any]] = field(default_factory=list)
    best: int = 0
    weights: dict[str, Tensor] | None = None

    def add(self, module: nn.Module, entry: dict[str, Any]) -> None:
        """Note an epoch, and the weights after it where they are the best."""
        self.curve.append(entry)
        if self.keep != "best":
            return
        if not self.best or entry["validation_accuracy"] > self.curve[self.best - 1]["validation_accuracy"]:
            self.best, self.weights = entry["epoch"], _weights(module)


def _make_trainable(loaded: LoadedModel) -> None:
    """Let the parameters that the model's builder left trainable require gradients again."""
    for name, parameter in loaded.module.named_parameters():
        parameter.requires_grad_(name in loaded.trainable)


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the state dict, on the CPU."""
    return {key: value.detach().cpu().clone() for key, value in module.state_dict().items()}


def _bytes(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _read(folder: Directory, name: str) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(io.BytesIO(folder.read(name)), map_location="cpu", weights_only=True)
    return state


def _check_same(saved: dict[str, Any], task: dict[str, Any], folder: Directory) -> None:
    """Refuse a directory whose network was trained otherwise."""
    for key in (*task, *(saved.keys() - task.keys())):
        if saved.get(key) != task.get(key):
            raise UsageError(
                f"out {folder.location!r} holds a network trained with another {key.replace('_', ' ')} (it was "
                f"{str(saved.get(key))[:12]}, is {str(task.get(key))[:12]}); name another directory"
            )
