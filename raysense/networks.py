"""Parts of loaded models: normalisation, torch.export programs, checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from raysense.errors import UsageError, first_line
from raysense.references import Reference, local_path


class Normalize(nn.Module):
    """A network behind the normalisation of its input: ``module((images - mean) / std)``.

    Takes images ``[N, C, H, W]``, floating, in [0, 1]; ``mean`` and ``std`` have one value per channel (one value
    serves any number of channels).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, module: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not mean or not all(value > 0 for value in std):
            raise UsageError(
                f"normalisation: mean {tuple(mean)} and std {tuple(std)} must have one value per channel, std positive"
            )
        self.module = module
        self.constants = {"mean": list(mean), "std": list(std)}
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Return the network's output for images ``[N, C, H, W]`` in [0, 1].

        Raises UsageError where the number of channels is not that of ``mean``.
        """
        if self.mean.shape[0] not in (1, images.shape[-3]):
            raise UsageError(
                f"model: it normalises {self.mean.shape[0]} channels, but the images have {images.shape[-3]}; "
                "use images with as many channels, or give the model's mean= and std="
            )
        return self.module((images - self.mean) / self.std)  # type: ignore[no-any-return]


class ExportedModel(nn.Module):
    """A torch.export program as a module: it has no training mode, so ``train`` and ``eval`` leave it alone."""

    def __init__(self, program: torch.export.ExportedProgram) -> None:
        super().__init__()
        self._exported = program
        self.program = program.module()
        self.training = False

    def place(self, device: str | torch.device) -> None:
        """Move it to a device with the graph, which may name devices itself, so that ``to`` is not enough."""
        self.program = move_to_device_pass(self._exported, str(device)).module()

    def train(self, mode: bool = True) -> ExportedModel:
        """Do nothing: the mode was fixed at export."""
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Return the program's output for images ``[N, C, H, W]``."""
        return self.program(images)  # type: ignore[no-any-return]


def arrange_convolutions(module: nn.Module) -> None:
    """Lay the weights of 2-d convolutions out with the channels last, as images on a CPU are.

    Otherwise the backward pass of a convolution copies its weight every time. Subclasses, whose code may ask for views of
    the weight, are left alone.
    """
    for part in module.modules():
        if type(part) is nn.Conv2d:
            part.weight.data = part.weight.data.contiguous(memory_format=torch.channels_last)


def check_exported(program: torch.export.ExportedProgram, reference: Reference) -> None:
    """Refuse a program with a fixed batch size, several inputs, or in training mode, each with its mend."""
    inputs = program.graph_signature.user_inputs
    if len(inputs) != 1:
        raise reference.error(f"takes {len(inputs)} inputs; export a model of the images alone")
    shapes = {node.name: node.meta["val"].shape for node in program.graph.nodes if node.name == inputs[0]}
    batch = shapes[str(inputs[0])][0]
    if isinstance(batch, int):
        mend = "export it with dynamic_shapes=({0: torch.export.Dim('batch')},)"
        raise reference.error(f"was exported for batches of exactly {batch}; {mend}")
    if any(map(_depends_on_mode, program.graph.nodes)) or program.graph_signature.buffers_to_mutate:
        message = "was exported in training mode (dropout, or statistics of the batch)"
        raise reference.error(f"{message}; call model.eval() before torch.export.export")


def _depends_on_mode(node: torch.fx.Node) -> bool:
    """Tell whether a node of an exported graph is a dropout that drops or a batch norm that uses the batch."""
    if node.target is torch.ops.aten.dropout.default:
        return node.args[2] is True
    return node.target is torch.ops.aten.batch_norm.default and node.args[5] is True


def load_checkpoint(module: nn.Module, path: str, reference: Reference) -> None:
    """Load a file's state dict into a module, in place; tensors are cast to the module's dtypes.

    The file holds a state dict, or a dict with one under ``state_dict`` or ``model``; a prefix ``module.`` on all keys
    (DataParallel) is dropped. It is read with ``weights_only=True``: nothing in it is executed.

    Raises UsageError where the file cannot be read, or its keys or shapes are not those of the module.
    """
    file = local_path(path)
    if not file.is_file():
        raise reference.error(f"there is no checkpoint {file}; correct checkpoint=")
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        message = f"checkpoint {file} cannot be read ({first_line(error)})"
        raise reference.error(
            f"{message}; save a plain state dict with torch.save(model.state_dict(), path)"
        ) from error
    state = _state_dict(loaded)
    if state is None:
        raise reference.error(f"checkpoint {file} holds no state dict; save torch.save(model.state_dict(), path)")
    expected = module.state_dict()
    if all(key.startswith("module.") for key in state) and not all(key.startswith("module.") for key in expected):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    try:
        missing, unexpected = module.load_state_dict(state, strict=False)
    except RuntimeError as error:
        detail = str(error).strip().rpartition("\n")[2].strip()
        raise reference.error(f"checkpoint {file} does not fit {type(module).__name__}: {detail}") from error
    if missing or unexpected:
        parts = [f"lacks {missing[0]}"] if missing else []
        parts += [f"has the unknown {unexpected[0]}"] if unexpected else []
        message = f"checkpoint {file} {' and '.join(parts)} ({len(missing)} missing, {len(unexpected)} unknown keys)"
        raise reference.error(f"{message}; it belongs to another architecture than {type(module).__name__}")


def _state_dict(loaded: object) -> Mapping[str, Tensor] | None:
    """Return the state dict in a loaded checkpoint, None where there is none."""
    for key in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not loaded or not any(isinstance(v, Tensor) for v in loaded.values()):
        return None
    return loaded
