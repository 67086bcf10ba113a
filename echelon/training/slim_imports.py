"""Import what trains a part of a model without what its libraries need for other things only.

transformers and torch look for optional packages when they are imported, and load those that they find: compilers of
GPU kernels, the optimisers of SciPy (for object detection), readers of images. A device that trains a part of a
language model calls none of them, and they take about as much memory as all else that is loaded besides torch.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

UNUSED = ("PIL", "scipy", "sklearn", "torchaudio", "torchvision", "triton")
"""Packages that are optional to torch, transformers and peft, and that no part of a language model calls."""


@contextmanager
def lean_imports() -> Iterator[None]:
    """Within it, packages of `UNUSED` that are not loaded yet cannot be found.

    torch and transformers remember for the whole process that they did not find them, so it is for a process that
    trains parts on its CPU and does nothing else with them. Afterwards anyone may import them again.
    """
    modules = cast("dict[str, Any]", sys.modules)
    hidden = [name for name in UNUSED if name not in modules]
    modules.update(
        dict.fromkeys(hidden)
    )  # None says that there is no such package, to `import` and `find_spec`
    try:
        yield
    finally:
        for name in hidden:
            del modules[name]
