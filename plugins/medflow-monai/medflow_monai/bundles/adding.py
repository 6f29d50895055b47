"""From a folder of somebody's to a model: declared, tried once, pinned, published."""

from __future__ import annotations

import getpass
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from medflow.errors import CaseError, ConfigurationError, PluginBroken
from medflow.inference.results import results_of
from medflow.pictures import said_of
from medflow.plugin import ModelSpec
from medflow.testing.cases import sample_cases
from medflow_monai.bundles.declaration import Bundle, Declaration, declare, kebab
from medflow_monai.bundles.label_map import LabelMap
from medflow_monai.bundles.metadata import METADATA, activation_of, config_files, read_config, read_metadata
from medflow_monai.bundles.model import BundleModel, bundle_model
from medflow_monai.bundles.pinned import Draft, Pinned

_LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "docs/license.txt", "docs/LICENSE")


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """What came of running a bundle once on generated images; ``found`` says of each output what it gave."""

    found: Sequence[str]


def add(
    source: Path,
    folder: Path,
    wishes: LabelMap,
    *,
    replace_it: bool,
    trial: bool,
    taken: Collection[str] = (),
) -> Pinned:
    """Make the bundle in ``source`` a model; what it is then is what is in ``folder``, whatever becomes of ``source``.

    ``taken`` are the names of models that are none of these bundles.

    Raises
    ------
    ConfigurationError
        It cannot be declared, built or run, or its name is taken; nothing is left behind.
    """
    draft = Draft(folder, bundle_root(source))
    try:
        declared = _declared(draft, source, wishes)
        if declared.spec.name in taken:
            raise ConfigurationError(f"a model that is no bundle is called {declared.spec.name}: give another --name")
        pinned = draft.keep(
            declared.spec, declared.plan, added=_who(), wishes=wishes.model_dump(mode="json", exclude_defaults=True)
        )
        _try(bundle_model(pinned), run=trial)
        home = draft.publish(declared.spec.name, replace=replace_it)
        return replace(pinned, home=home)
    finally:
        draft.discard()


def check(source: Path, wishes: LabelMap, *, trial: bool) -> tuple[ModelSpec, Trial]:
    """Do all that adding does, but for adding.

    Raises
    ------
    ConfigurationError
        As `add`.
    """
    with TemporaryDirectory(prefix="medflow-bundle-") as folder:
        draft = Draft(Path(folder), bundle_root(source))
        declared = _declared(draft, source, wishes)
        pinned = draft.keep(declared.spec, declared.plan, added={}, wishes={})
        return declared.spec, _try(bundle_model(pinned), run=trial)


def bundle_root(source: Path) -> Path:
    """The folder, if it is a bundle's.

    Raises
    ------
    ConfigurationError
        It is none.
    """
    if not source.is_dir():
        raise ConfigurationError(f"{source} is no folder: give a bundle's (unpack an archive first)")
    if not (source / METADATA).is_file():  # before any of what may be somebody's whole disk is copied
        raise ConfigurationError(
            f"{source.resolve().name} is no MONAI bundle: it has no {METADATA} (unpack an archive, and name the folder "
            "inside)"
        )
    return source


def _declared(draft: Draft, source: Path, wishes: LabelMap) -> Declaration:
    root = draft.content
    try:
        metadata = read_metadata(root)
        names = config_files(root, wishes.config)
        config = read_config(root, names)
        bundle = Bundle(
            folder=kebab(source.resolve().name) or "bundle",
            metadata=metadata,
            config=names,
            activation=activation_of(config),
            licence=_licence(root),
            files=draft.files,
        )
        return declare(bundle, wishes)
    except ConfigurationError as error:
        raise ConfigurationError(f"{source.resolve().name} cannot be added: {error.message}", **error.fields) from None


def _licence(root: Path) -> str:
    for name in _LICENCES:
        if (root / name).is_file():
            lines = [line.strip() for line in (root / name).read_text(errors="replace").splitlines() if line.strip()]
            return f"{name}: {' '.join(lines[:2])[:120]}" if lines else name
    return ""


def _who() -> dict[str, str]:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a passwd entry
        user = "unknown"
    return {"at": datetime.now(UTC).isoformat(timespec="seconds"), "by": user, "with": version("medflow-monai")}


def _try(model: type[BundleModel], *, run: bool) -> Trial:
    """Build the bundle on the CPU and, if asked, run it once: what cannot work is better known now than at night."""
    loaded = model()
    loaded.load("cpu")
    try:
        if not run:
            return Trial(found=())
        [case] = sample_cases(model.spec, 1)
        try:
            [prediction] = loaded.predict([loaded.prepare(case)])
            results = results_of(model.spec, case, prediction)
        except CaseError as error:
            raise PluginBroken(f"it was built, but gave no result of a generated image: {error.message}") from None
        except PluginBroken:
            raise
        except Exception as error:  # noqa: BLE001 - a third party's code
            raise PluginBroken(
                f"it was built, but did not run on a generated image: {type(error).__name__}: {error}"
            ) from error
        outputs = {output.name: output for output in model.spec.outputs}
        given = [result for result in results if result.value is not None]
        return Trial(found=[said_of(outputs[result.output], result) for result in given])
    finally:
        loaded.close()
