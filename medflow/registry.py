"""The models that are installed: found through the entry-point group ``medflow.models``.

A plugin that cannot be read is named with its error and never stops the others; nor does one of several models that
an entry point gives. Models that come and go while a process lives (added bundles) are found without a restart.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from hashlib import sha256
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from threading import Lock
from typing import Any

from pydantic import TypeAdapter, ValidationError

from medflow import channel_rule, series_rule, variant_rule
from medflow.errors import ConfigurationError, PluginBroken, UnknownModel, place_of
from medflow.plugin import ImagingInput, Model, ModelSpec, NoteInput, SequenceInput, TimeSeriesInput
from medflow.records import UnitKind

GROUP = "medflow.models"
_SPEC = TypeAdapter(ModelSpec)


@dataclass(frozen=True, kw_only=True, slots=True)
class RegisteredModel:
    """An installed model. ``digest`` is a SHA-256 over its spec, its package's source files and its weights.

    ``folder`` is where the files of a version trained here lie; None of what the plugin itself brings.
    """

    spec: ModelSpec
    distribution: str
    entry_point: str
    digest: str
    factory: Callable[[], Model]
    folder: Path | None = None

    @property
    def name(self) -> str:
        """The spec's name."""
        return self.spec.name


@dataclass(frozen=True, kw_only=True, slots=True)
class BrokenPlugin:
    """An entry point that gives no usable model, and why.

    A callable that yields models yields one of these, under the model's name, for a model that cannot be used.
    """

    distribution: str
    entry_point: str
    error: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Registry:
    """What is installed, by name, and what is broken."""

    models: Mapping[str, RegisteredModel]
    broken: tuple[BrokenPlugin, ...]

    def get(self, name: str) -> RegisteredModel:
        """The model of this name.

        Raises
        ------
        PluginBroken
            Its plugin is installed but cannot be used.
        UnknownModel
            Nothing of that name is installed; the message lists what is.
        """
        if name in self.models:
            return self.models[name]
        for plugin in self.broken:
            if plugin.entry_point == name:
                raise PluginBroken(f"the model {name} of {plugin.distribution} cannot be used: {plugin.error}")
        installed = ", ".join(sorted(self.models)) or "none"
        raise UnknownModel(f"no model is called {name!r}; installed: {installed}")

    def choose(self, names: Iterable[str] = ()) -> list[RegisteredModel]:
        """The named models, or all of them in name order."""
        wanted = list(dict.fromkeys(names)) or sorted(self.models)
        return [self.get(name) for name in wanted]


def dump_spec(spec: ModelSpec) -> dict[str, Any]:
    """The spec as a JSON object, as it is stored with the model."""
    return _SPEC.dump_python(spec, mode="json")


def load_spec(data: Mapping[str, Any]) -> ModelSpec:
    """The spec from its stored JSON object; reading it needs no plugin.

    Raises
    ------
    ConfigurationError
        It was written by an incompatible version.
    """
    try:
        return _SPEC.validate_python(data)
    except ValidationError as error:
        fields = ", ".join(sorted({".".join(map(str, item["loc"])) for item in error.errors(include_input=False)}))
        raise ConfigurationError(f"a stored model spec does not fit this version of medflow (at: {fields})") from None


_reading = Lock()
_last: tuple[Hashable, Registry] | None = None


def installed() -> Registry:
    """The models installed beside this process.

    They are read once, as modules that are imported stay what they were; and again when an entry point's callable has
    an attribute ``stamp``, a callable too, that gives another value than it did.
    """
    global _last
    with _reading:
        stamp = _stamp()
        if _last is None or _last[0] != stamp:
            _last = stamp, read_models(_points())
        return _last[1]


@cache
def _points() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=GROUP))


def _stamp() -> Hashable:
    stamps: list[Hashable] = []
    for point in _points():
        try:
            target = point.load()
            stamps.append(target.stamp() if hasattr(target, "stamp") else None)
        except Exception:  # noqa: BLE001 - reading the models says what is wrong with it
            stamps.append(None)
    return tuple(stamps)


def read_models(points: Iterable[EntryPoint]) -> Registry:
    """Read every model's spec. Torch is not imported unless a plugin does so against its contract."""
    models: dict[str, RegisteredModel] = {}
    broken: list[BrokenPlugin] = []
    for point in sorted(points, key=lambda item: item.name):
        distribution = f"{point.dist.name} {point.dist.version}" if point.dist else "unknown distribution"
        plugin = BrokenPlugin(distribution=distribution, entry_point=point.name, error="")
        try:
            found = _factories(point)
        except Exception as error:  # noqa: BLE001 - whatever a third party's import raises must not stop the others
            broken.append(replace(plugin, error=_describe(error)))
            continue
        for factory in found:
            if isinstance(factory, BrokenPlugin):
                broken.append(replace(factory, distribution=distribution))
                continue
            try:
                model = _register(factory, point, distribution)
                if model.name in models:
                    other = models[model.name].distribution
                    raise PluginBroken(f"the name {model.name!r} is taken by {other}: uninstall one of them")
                models[model.name] = model
            except Exception as error:  # noqa: BLE001 - as above
                broken.append(replace(plugin, error=_describe(error)))
    return Registry(models=models, broken=tuple(broken))


def _factories(point: EntryPoint) -> list[Callable[[], Model] | BrokenPlugin]:
    target: Any = point.load()
    if isinstance(target, type) and issubclass(target, Model):
        return [target]
    if not callable(target):
        raise PluginBroken(f"{point.value} is neither a Model subclass nor a callable that yields models")
    return list(target())  # pyright: ignore[reportArgumentType]  # a wrong return is reported as a broken plugin


def _register(factory: Callable[[], Model], point: EntryPoint, distribution: str) -> RegisteredModel:
    spec = getattr(factory, "spec", None)
    if not isinstance(spec, ModelSpec):
        raise PluginBroken(f"{point.value} has no ModelSpec in its attribute 'spec'")
    check_spec(spec)
    return RegisteredModel(
        spec=spec,
        distribution=distribution,
        entry_point=point.name,
        digest=model_digest(factory, spec),
        factory=factory,
    )


_UNITS = {
    ImagingInput: {UnitKind.SERIES, UnitKind.STUDY},
    TimeSeriesInput: {UnitKind.ENCOUNTER},
    SequenceInput: {UnitKind.SEQUENCE, UnitKind.SAMPLE},
    NoteInput: set[UnitKind](),
}


def check_spec(spec: ModelSpec) -> None:
    """Raise PluginBroken if a spec cannot be served as declared."""
    problems: list[str] = []
    _SPEC.validate_python(dump_spec(spec))
    for kind, names in (("input", [i.name for i in spec.accepts]), ("output", [o.name for o in spec.outputs])):
        doubles = [name for name, count in Counter(names).items() if count > 1]
        if doubles:
            problems.append(f"{kind} names are not unique: {', '.join(doubles)}")
        if not names:
            problems.append(f"it declares no {kind}")
    if len(spec.accepts) > 1 and not (spec.unit is UnitKind.STUDY and {ImagingInput} == set(map(type, spec.accepts))):
        problems.append("it joins several inputs; this version of medflow serves that for the images of a study only")
    for item in spec.accepts:
        units = _UNITS[type(item)]
        if not units:
            problems.append(f"this version of medflow serves no input of kind {item.kind!r}")
        elif spec.unit not in units:
            problems.append(f"an input of kind {item.kind!r} is scored per {'/'.join(sorted(units))}, not {spec.unit}")
    problems += series_rule.problems_of(spec) + channel_rule.problems_of(spec) + variant_rule.problems_of(spec)
    if spec.batch_size < 1:
        problems.append("batch_size must be 1 or more")
    if problems:
        raise PluginBroken("; ".join(problems))


def model_digest(factory: Callable[[], Model], spec: ModelSpec) -> str:
    """A SHA-256 over what decides a model's answers: spec, source files of the factory's package, and weights."""
    total = sha256(_SPEC.dump_json(spec))
    module = sys.modules[getattr(factory, "__module__", type(factory).__module__)]
    source = Path(module.__file__ or "")
    top = sys.modules[module.__name__.partition(".")[0]]
    root = Path(top.__file__).parent if top.__file__ and hasattr(top, "__path__") else None
    for path in sorted(root.rglob("*.py")) if root else [source]:
        total.update(str(path.relative_to(root) if root else path.name).encode() + b"\0" + path.read_bytes())
    for weights in spec.weights:
        total.update(weights.sha256.encode())
    return total.hexdigest()


def _describe(error: Exception) -> str:
    """The error and the line of the plugin that raised it, in one line."""
    return f"{type(error).__name__}: {error} ({place_of(error)})"


def with_announced(registry: Registry, announced: Iterable[RegisteredModel]) -> Registry:
    """The registry with models that others run; where both have a model, theirs counts, for they are who runs it."""
    theirs = {model.name: model for model in announced}
    broken = tuple(plugin for plugin in registry.broken if plugin.entry_point not in theirs)
    return Registry(models={**registry.models, **theirs}, broken=broken)


def elsewhere(*, spec: Mapping[str, Any], distribution: str, digest: str) -> RegisteredModel:
    """A model that is not installed here, from its stored spec: it can be selected for and delivered, not run."""

    def factory() -> Model:
        raise PluginBroken(f"{spec['name']} of {distribution} is not installed in this process")

    return RegisteredModel(
        spec=load_spec(spec), distribution=distribution, entry_point=spec["name"], digest=digest, factory=factory
    )
