"""Import what trains a part of a model without what its libraries need for other things only.

transformers and torch look for optional packages when they are imported, and load those that they find: compilers of
GPU kernels, the optimisers of SciPy (for object detection), readers of images. A device that trains a part of a
language model calls none of them, and they take about as much memory as all else that is loaded besides torch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

UNUSED = ("PIL", "scipy", "sklearn", "torchaudio", "torchvision", "triton")
"""Packages that are optional to torch, transformers and peft, and that no part of a language model calls."""

SCIENTIFIC = ("scipy", "sklearn", "torchaudio", "torchvision")
"""Those of them that no language model calls on a GPU either."""


@contextmanager
def lean_imports(unused: Sequence[str] = UNUSED) -> Iterator[None]:
    """Within it, packages that are not used, and not loaded yet, cannot be found.

    torch and transformers remember for the whole process that they did not find them, so it is for a process that
    trains and does nothing else with them. Afterwards anyone may import them again.

    Args:
        unused: names of the packages. `UNUSED` is for what trains parts of a model on a CPU.
    """
    modules = cast("dict[str, Any]", sys.modules)
    hidden = [name for name in unused if name not in modules]
    modules.update(
        dict.fromkeys(hidden)
    )  # None says that there is no such package, to `import` and `find_spec`
    try:
        yield
    finally:
        for name in hidden:
            del modules[name]
