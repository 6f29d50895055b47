"""MONAI bundles as models, without a line of code: `medflow bundle add FOLDER`.

Listing them imports neither MONAI nor torch: a bundle's declaration was made when it was added, and lies in its pin.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator

from medflow.config import load_settings
from medflow.errors import PluginBroken
from medflow.plugin import Model
from medflow.registry import BrokenPlugin
from medflow_monai.bundles import pinned
from medflow_monai.bundles.model import bundle_model

__all__ = ["bundle_models"]


def bundle_models() -> Iterator[Callable[[], Model] | BrokenPlugin]:
    """The models of the bundles that were added; one that cannot be used is named with the reason."""
    folder = pinned.bundles_folder(load_settings())
    for name in pinned.names(folder):
        try:
            found = pinned.read_pin(folder / name)
            pinned.check_quickly(found)
            yield bundle_model(found)
        except PluginBroken as error:
            yield BrokenPlugin(distribution="", entry_point=name, error=f"bundle {name}: {error.message}")


def _stamp() -> Hashable:
    return pinned.stamp(pinned.bundles_folder(load_settings()))


bundle_models.stamp = _stamp  # type: ignore[attr-defined]  # how the registry sees that bundles came or went
