"""The models that one process keeps on its device, so that a chunk finds its model loaded.

A model is loaded once and stays. When the next one needs the memory, the models used longest ago go first, and none
that is in use. Threads may ask at once: a model is loaded by the first of them, and their calls into the device follow
one another.
"""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from medflow.config import Settings
from medflow.errors import DeviceExhausted, MedflowError, PluginBroken, TransientError
from medflow.garbage import seldom_collected
from medflow.inference.devices import as_medflow_error, free_cache, is_out_of_memory, resolve_device
from medflow.inference.lane import Lane
from medflow.inference.loaded import LoadedModel
from medflow.inference.memory import DeviceMemory, batch_that_fits
from medflow.inference.runner import Runner, Runs
from medflow.plugin import Model, ModelSpec

log = logging.getLogger(__name__)


class Loadable(Protocol):
    """What loading needs to know of an installed model: `medflow.registry.RegisteredModel` is one."""

    @property
    def spec(self) -> ModelSpec:
        """Its declaration."""
        ...

    @property
    def distribution(self) -> str:
        """Where it comes from, with the version."""
        ...

    @property
    def digest(self) -> str:
        """Tells it from every other model and version."""
        ...

    @property
    def factory(self) -> Callable[[], Model]:
        """Makes the object to load."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """A device, what it has room for, and the way in."""

    device: str
    memory: DeviceMemory
    lane: Lane

    @classmethod
    def of(cls, device: str, settings: Settings) -> _Place:
        return cls(device=device, memory=DeviceMemory(device, settings.memory_mib), lane=Lane(device))


class LoadedModels:
    """The models that this process has loaded, each once, on one device.

    Looking for the device imports torch, which takes as long as selecting thousands of cases: it is done in a thread,
    from `look` on, and waited for when the device is first needed.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._looking: Future[_Place] | None = None
        self._one_looks = threading.Lock()
        if settings.device not in ("auto", "cpu"):
            self.look().result()  # one that was asked for by name may not be there
        self._chunk_size = settings.chunk_size
        self._patience_s = settings.lease_seconds  # a chunk that waits for longer has lost its lease
        self._resident: OrderedDict[str, LoadedModel] = OrderedDict()  # by digest, the one used longest ago first
        self._users: Counter[str] = Counter()
        self._changed = threading.Condition()  # guards the two above, and tells of a model that fell idle
        self._one_loads = threading.Lock()
        self._crowded = False  # somebody waits for memory: models in use get no new users, or they would never go

    def look(self) -> Future[_Place]:
        """Look for the device from now on, as there will be work for it; and go on without waiting."""
        with self._one_looks:
            if self._looking is None:
                self._looking = _in_background(lambda: _Place.of(self._found(), self._settings))
            return self._looking

    def _found(self) -> str:
        """The device, looked for now."""
        return resolve_device(self._settings.device)

    @property
    def device(self) -> str:
        """The torch device.

        Raises
        ------
        ConfigurationError
            It is not there.
        """
        return self.look().result().device

    @property
    def _memory(self) -> DeviceMemory:
        return self.look().result().memory

    @property
    def _lane(self) -> Lane:
        return self.look().result().lane

    @contextmanager
    def using(self, model: Loadable) -> Iterator[LoadedModel]:
        """The loaded model, which stays loaded for as long as it is used; loading happens at the first call.

        Raises
        ------
        PluginBroken
            The model does not load, or needs more memory than the device has for models.
        TransientError
            The device is in trouble, or has no memory free that other programs or other threads do not hold.
        """
        loaded = self._resident_one(model) or self._load_in_turn(model)
        try:
            yield loaded
        finally:
            with self._changed:
                self._users[model.digest] -= 1
                self._resident.move_to_end(model.digest)
                self._changed.notify_all()

    @contextmanager
    def running(self, model: Loadable, *, threads: int, explain: bool = False) -> Iterator[Runs]:
        """What runs the model over cases; it stays loaded meanwhile. Raises as `using`."""
        with self.using(model) as loaded:
            yield Runner(loaded, threads=threads, explain=explain)

    def names(self) -> list[str]:
        """The names of the models that are loaded now."""
        with self._changed:
            return sorted({loaded.spec.name for loaded in self._resident.values()})

    def keep(self, digests: Collection[str]) -> None:
        """Free the device of the models that are none of these and not in use."""
        with self._changed:
            if self._an_idle_one(digests) is None:
                return
        with self._lane.loading():
            while (gone := self._take_idle(but=digests)) is not None:
                log.info("unloading %s %s, which is served no more", gone.spec.name, gone.spec.version)
                self._unload(gone)

    def close(self) -> None:
        """Free the device of every model that is not in use."""
        with self._changed:
            if self._an_idle_one() is None:
                return
        with self._lane.loading():
            while (oldest := self._take_idle()) is not None:
                oldest.close()
            if self.device != "cpu":  # a process that ends frees its memory faster than a collection would
                gc.collect()
                free_cache(self.device)

    def _resident_one(self, model: Loadable) -> LoadedModel | None:
        with self._changed:
            self._changed.wait_for(lambda: not self._crowded)
            return self._claim(model.digest)

    def _claim(self, digest: str) -> LoadedModel | None:
        loaded = self._resident.get(digest)
        if loaded is not None:
            self._users[digest] += 1
            self._resident.move_to_end(digest)
        return loaded

    def _load_in_turn(self, model: Loadable) -> LoadedModel:
        with self._one_loads:
            with self._changed:
                if (loaded := self._claim(model.digest)) is not None:  # another thread was faster
                    return loaded
            try:
                return self._load_when_it_fits(model)
            finally:
                with self._changed:
                    self._crowded = False
                    self._changed.notify_all()

    def _load_when_it_fits(self, model: Loadable) -> LoadedModel:
        spec, until = model.spec, time.monotonic() + self._patience_s
        if spec.memory_mib > self._memory.most_mib:
            raise PluginBroken(_too_large(spec, self._memory))
        while True:
            with self._lane.loading():
                room = self._make_room(spec)
                if spec.memory_mib <= room:
                    return self._load(model, room)
            if not self._one_fell_idle(until - time.monotonic()):
                raise DeviceExhausted(
                    f"{spec.name} needs {spec.memory_mib} MiB, and {self.device} has {max(0, int(room))} MiB free "
                    "beside other programs and the models in use: try again when they have ended"
                )

    def _one_fell_idle(self, patience_s: float) -> bool:
        with self._changed:
            self._crowded = True
            if not self._resident:  # nothing of this process is in the way
                return False
            return self._changed.wait_for(lambda: self._an_idle_one() is not None, timeout=patience_s)

    def _make_room(self, spec: ModelSpec) -> float:
        """Unload idle models, the one used longest ago first, until ``spec`` fits; gives the room there is then."""
        free_cache(self.device)
        while spec.memory_mib > (room := self._memory.room_mib(self._specs())):
            if (oldest := self._take_idle()) is None:
                break
            log.info("unloading %s to make room for %s", oldest.spec.name, spec.name)
            self._unload(oldest)
        return room

    def _specs(self) -> list[ModelSpec]:
        with self._changed:
            return [loaded.spec for loaded in self._resident.values()]

    def _an_idle_one(self, but: Collection[str] = ()) -> str | None:
        return next((digest for digest in self._resident if not self._users[digest] and digest not in but), None)

    def _take_idle(self, but: Collection[str] = ()) -> LoadedModel | None:
        with self._changed:
            digest = self._an_idle_one(but)
            return self._resident.pop(digest) if digest is not None else None

    def _unload(self, loaded: LoadedModel) -> None:
        loaded.close()
        gc.collect()  # modules that refer to one another would keep their tensors until some later collection
        free_cache(self.device)

    def _load(self, model: Loadable, room_mib: float) -> LoadedModel:
        started = time.perf_counter()
        batch = model.spec.batch_size
        if self.device != "cpu":
            batch = batch_that_fits(model.spec, self._chunk_size, room_mib)
        loaded = LoadedModel(load(model, self.device), self._lane, planned_batch=batch)
        log.info(
            "loaded %s on %s in %.1f s, batches of %d",
            model.spec.name,
            self.device,
            time.perf_counter() - started,
            batch,
        )
        with self._changed:
            self._resident[model.digest] = loaded
            self._users[model.digest] += 1
        return loaded


def _in_background(work: Callable[[], _Place]) -> Future[_Place]:
    def looking() -> _Place:
        with seldom_collected():  # torch is imported, which makes objects by the hundred thousand
            return work()

    pool = ThreadPoolExecutor(1, "device")
    future = pool.submit(looking)
    pool.shutdown(wait=False)
    return future


def load(model: Loadable, device: str) -> Model:
    """A new object of the model, loaded on ``device``.

    Raises
    ------
    MedflowError
        It does not load: `PluginBroken` for a defect, `TransientError` for a device in trouble.
    """
    try:
        made = model.factory()
        made.load(device)
        return made
    except MedflowError:
        raise
    except Exception as error:  # noqa: BLE001 - a plugin's code
        found = as_medflow_error(error)
        if is_out_of_memory(error):
            found = DeviceExhausted(
                f"{device} ran out of memory while {model.spec.name} was loading, "
                f"which declares {model.spec.memory_mib} MiB"
            )
    if isinstance(found, TransientError):
        raise found
    raise PluginBroken(f"{model.spec.name} of {model.distribution} does not load: {found.message}")


def _too_large(spec: ModelSpec, memory: DeviceMemory) -> str:
    message = (
        f"{spec.name} declares {spec.memory_mib} MiB, and {memory.device} has {int(memory.most_mib)} MiB for models"
    )
    if memory.limit_mib and spec.memory_mib > memory.limit_mib:
        return f"{message}: set MEDFLOW_MEMORY_MIB to {spec.memory_mib} or more, or to 0 for all that is free"
    return f"{message}: score it on a larger device, or on the CPU"
