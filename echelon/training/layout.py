"""The adapter of a PEFT model as one flat tensor that the model's parameters are views of."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from echelon.adapters.base import AdapterForm
from echelon.adapters.exported import CORE, SCALE
from echelon.errors import ConfigError
from echelon.messages.adapter import AdapterLayout, LayoutEntry, Vector, check_vector

ADAPTER = "default"
_SCALE = f".lora_B.{SCALE}"


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable tensors by their key in PEFT's `adapter_model.safetensors` (no adapter name in it)."""
    return {
        plain_key(name): parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }


def plain_key(name: str) -> str:
    """The key in PEFT's file of a tensor that has this name in the model."""
    # A head that is trained whole, of a classifier, lies in a wrapper that the file does not know of.
    plain = name.replace(f".modules_to_save.{ADAPTER}.", ".")
    plain = plain.replace(f".lora_magnitude_vector.{ADAPTER}.weight", ".lora_magnitude_vector")
    return plain.replace(f".{ADAPTER}.", ".").removesuffix(f".{ADAPTER}")


class FlatAdapter:
    """One float32[d] tensor of weights and one of gradients; the model's LoRA parameters are views of them.

    Autograd adds into the gradient views, so clipping, the proximal term and AdamW are each one operation on
    one tensor, and a device's adapter is swapped in by one copy. Of a model that is spread over several GPUs the
    parameters beside other GPUs' layers are tensors of their own: `gather` brings their gradients, `spread` their
    weights.

    Scales of cores are trained beside them and do not travel: they stand behind the d weights, begin at 1, and are
    folded into the cores where the adapter is read. What stays on a device stands between the two, float32[p], and
    begins at 0.

    Args:
        model: with LoRA, in the kind's form.
        form: the kind; None: all that is trained travels.

    Attributes:
        layout: of what travels, float32[d].
        own: where what stays on the device lies in `weights`.
        trained: length of `weights`: d, p and the scales.
    """

    def __init__(self, model: nn.Module, form: AdapterForm | None = None) -> None:
        parameters = adapter_parameters(model)
        odd = [key for key, parameter in parameters.items() if parameter.dtype != torch.float32]
        if odd:
            raise ConfigError(f"adapter tensor {odd[0]} is not float32; leave adapters in full precision")
        scales = {key: p for key, p in parameters.items() if key.endswith(_SCALE)}
        stay = {key: p for key, p in parameters.items() if form is not None and form.stays(key)}
        travel = {key: p for key, p in parameters.items() if key not in scales and key not in stay}
        self.layout = AdapterLayout.of({key: tuple(p.shape) for key, p in travel.items()})
        device = next(iter(parameters.values())).device
        self.trained = sum(parameter.numel() for parameter in parameters.values())
        self.weights = nn.Parameter(torch.zeros(self.trained, device=device))
        self.gradient = torch.zeros(self.trained, device=device)
        self.weights.grad = self.gradient
        self._elsewhere: list[tuple[nn.Parameter, slice]] = []
        self._folds: list[tuple[slice, slice]] = []
        entries = list(self.layout.entries)
        cores = {entry.key: _part(entry) for entry in entries}
        for key in (*sorted(stay), *sorted(scales)):
            shape = tuple(parameters[key].shape)
            entry = LayoutEntry(key, shape, entries[-1].offset + entries[-1].size)
            entries.append(entry)
            if key in scales:
                self._folds.append((cores[f"{key.removesuffix(SCALE)}{CORE}"], _part(entry)))
        self.own = slice(self.layout.dim, self.layout.dim + sum(p.numel() for p in stay.values()))
        for entry in entries:
            parameter, part = parameters[entry.key], _part(entry)
            view = self.weights.data[part].view(entry.shape)
            view.copy_(parameter.data)
            if lies_elsewhere(parameter, device):
                self._elsewhere.append((parameter, part))
                continue
            parameter.data = view
            parameter.grad = self.gradient[part].view(entry.shape)

    def load(self, vector: Vector, personal: Vector | None = None) -> None:
        """Make `vector`, float32[d], the model's adapter, with what is a device's own; see `whole`.

        Raises:
            CodecError: a vector has another type or length.
        """
        self.weights.data.copy_(self.whole(vector, personal))
        self.spread()

    def whole(self, vector: Vector, personal: Vector | None = None) -> torch.Tensor:
        """All weights of an adapter, as they lie in `weights`; scales of cores begin at 1.

        Args:
            vector: what travels, float32[d].
            personal: what stays on the device, float32[p]; None: zeros.

        Raises:
            CodecError: a vector has another type or length.
        """
        check_vector(vector, self.layout.dim)
        parts = [as_tensor(vector)]
        size = self.own.stop - self.own.start
        if personal is not None:
            check_vector(personal, size)
            parts.append(as_tensor(personal))
        elif size:
            parts.append(torch.zeros(size))
        missing = self.trained - self.own.stop
        if missing:
            parts.append(torch.ones(missing))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def gather(self) -> None:
        """Add the gradients of parameters on other GPUs to `gradient`."""
        for parameter, part in self._elsewhere:
            if parameter.grad is not None:
                self.gradient[part].add_(parameter.grad.reshape(-1).to(self.gradient.device))
                parameter.grad = None

    def spread(self) -> None:
        """Give parameters on other GPUs the weights as they are, and no gradient."""
        for parameter, part in self._elsewhere:
            parameter.data.copy_(self.weights.data[part].view(parameter.shape))
            parameter.grad = None

    def read(self) -> Vector:
        """A copy of the model's adapter, float32[d]."""
        found = self.weights.data[: self.layout.dim]
        if self._folds:
            found = found.clone()
        for core, scale in self._folds:
            found[core].view(scale.stop - scale.start, -1).mul_(self.weights.data[scale][:, None])
        return to_numpy(found)

    def read_personal(self) -> Vector:
        """A copy of what stays on the device, float32[p]."""
        return to_numpy(self.weights.data[self.own])


def _part(entry: LayoutEntry) -> slice:
    return slice(entry.offset, entry.offset + entry.size)


def lies_elsewhere(parameter: torch.Tensor, device: torch.device) -> bool:
    """Whether a parameter is on another device than the flat tensor, and so cannot be a view of it."""
    return parameter.device != device


def as_tensor(vector: Vector) -> torch.Tensor:
    """The vector as a tensor that shares its memory, or a copy if it cannot be written to."""
    return torch.from_numpy(vector if vector.flags.writeable else vector.copy())


def to_numpy(tensor: torch.Tensor) -> Vector:
    """A copy as float32[d] in main memory."""
    return np.array(tensor.detach().cpu().numpy(), dtype=np.float32, copy=True)
