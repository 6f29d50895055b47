"""A bundle's own Python files, importable while it is being built and by nobody else.

Most bundles with code call it ``scripts``, so two of them would get each other's: names are given back afterwards.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from types import ModuleType

from medflow.errors import PluginBroken

_one_at_a_time = RLock()
_TAKEN = {"medflow", "medflow_monai", "monai", "torch", "numpy", "scipy", "nibabel", "skimage", "ignite"}


@contextmanager
def own_modules(root: Path) -> Iterator[None]:
    """Let ``import`` find the Python files in ``root`` inside the block.

    Raises
    ------
    PluginBroken
        The bundle has a module of the name of one that it needs itself.
    """
    names = _top_names(root)
    if clash := sorted(names & (_TAKEN | sys.stdlib_module_names)):
        raise PluginBroken(f"the bundle's own {clash[0]} would stand in for the package of that name: rename it")
    with _one_at_a_time:
        aside = _take_out(names)
        sys.path.insert(0, str(root))
        importlib.invalidate_caches()
        try:
            yield
        finally:
            sys.path.remove(str(root))
            _take_out(names)
            sys.modules.update(aside)


def _top_names(root: Path) -> set[str]:
    files = {path.relative_to(root) for path in root.rglob("*.py")}
    return {path.parts[0] if len(path.parts) > 1 else path.stem for path in files}


def _take_out(names: set[str]) -> dict[str, ModuleType]:
    found = [name for name in sys.modules if name.partition(".")[0] in names]
    return {name: sys.modules.pop(name) for name in found}
