"""Explanations of predictions, where a run asks for them: computed after the predictions, and never at their cost."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medflow.errors import MedflowError, PredictionInvalid
from medflow.inference.devices import as_medflow_error, free_cache, is_out_of_memory
from medflow.inference.loaded import LoadedModel
from medflow.plugin import (
    Case,
    Classification,
    Explanation,
    Image,
    ModelSpec,
    Prediction,
    Segment,
    SequenceAttribution,
    SequenceInput,
    SequenceWindow,
    SeriesAttribution,
    TimeSeries,
    TimeSeriesInput,
    VariantWindows,
)
from medflow.plugin.outputs import BASES
from medflow.timeseries import steps_of

Explanations = Mapping[str, Explanation]
"""What explains one case, by the name of the output."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Explained:
    """A predicted case that is to be explained."""

    case: Case
    ready: Any
    prediction: Prediction


class Explainer:
    """Explains what one loaded model predicted; ``seconds`` are those spent so far on the device."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self.seconds = 0.0

    def explain(self, batch: Sequence[Explained]) -> Iterator[Explanations | MedflowError]:
        """The checked explanation of each case, or why there is none, in order.

        A case out of the model's scope has nothing to explain. A batch that fails is halved until the case that fails
        it stands alone; a device out of memory is given fewer cases at once from then on.
        """
        asked = [place for place, item in enumerate(batch) if item.prediction.out_of_scope is None]
        found = dict(zip(asked, self._in_parts([batch[place] for place in asked]), strict=True))
        for place in range(len(batch)):
            yield found.get(place, {})

    def _in_parts(self, batch: Sequence[Explained]) -> Iterator[Explanations | MedflowError]:
        if not batch:
            return
        size = self._loaded.explained_size
        if len(batch) > size:
            yield from self._in_parts(batch[:size])
            yield from self._in_parts(batch[size:])
            return
        answer = self._explain(batch)
        if not isinstance(answer, MedflowError):
            yield from (self._checked(item, one) for item, one in zip(batch, answer, strict=True))
        elif len(batch) == 1:
            yield answer
        else:
            middle = len(batch) // 2
            yield from self._in_parts(batch[:middle])
            yield from self._in_parts(batch[middle:])

    def _explain(self, batch: Sequence[Explained]) -> Sequence[Explanations] | MedflowError:
        """The explanations of a batch, or what went wrong, without the traceback: it would keep the batch's tensors."""
        loaded, exhausted = self._loaded, False
        with loaded.lane.explaining():
            started = time.perf_counter()
            try:
                return loaded.explain([item.ready for item in batch], [item.prediction for item in batch])
            except Exception as error:  # noqa: BLE001 - a plugin's code; the prediction stands whatever it does
                exhausted = is_out_of_memory(error)
                known = error if isinstance(error, MedflowError) else as_medflow_error(error)
                failure = known.with_traceback(None)
            finally:
                self.seconds += time.perf_counter() - started
            if exhausted:
                free_cache(loaded.lane.device)
        if exhausted and len(batch) > 1:
            loaded.explain_fewer(len(batch))
        return failure

    def _checked(self, item: Explained, answer: Explanations) -> Explanations | MedflowError:
        try:
            return checked(self._loaded.spec, item.case, answer)
        except PredictionInvalid as error:
            return error.with_traceback(None)


def checked(spec: ModelSpec, case: Case, answer: Explanations) -> Explanations:
    """A model's explanation against its declaration; a map that is NaN everywhere says nothing and is left out.

    Raises
    ------
    PredictionInvalid
        explanation-malformed: a name that is no output, no float32 array, infinite numbers, a heat map that is not
        on the grid of the image it explains; of a time series anything but a `SeriesAttribution` on its grid, finite;
        of a sequence anything but a `SequenceAttribution` with a row for each base, finite; of the variants of a
        sample anything at all: how they change the answer is what their scores say.
    """
    if not isinstance(answer, Mapping):
        raise _malformed("an explanation is a mapping from the names of outputs to what explains them")
    declared = {output.name for output in spec.outputs}
    if undeclared := sorted(map(str, set(answer) - declared)):
        raise _malformed(f"{', '.join(undeclared)} is explained, and the model declares {', '.join(sorted(declared))}")
    if answer and any(isinstance(value, VariantWindows) for value in case.inputs.values()):
        raise _malformed("what explains the variants of a sample are their scores: explain nothing else of them")
    series, sequence = explained_series(spec, case), explained_sequence(spec, case)
    for name, found in answer.items():
        if series is not None:
            _check_series(name, found, series)
        elif sequence is not None:
            _check_sequence(spec, name, found, sequence.bases)
        else:
            _check_array(spec, case, name, found)
    return {name: found for name, found in answer.items() if _says_something(found)}


def _says_something(found: Explanation) -> bool:
    return not isinstance(found, np.ndarray) or not np.isnan(found).all()


def _check_array(spec: ModelSpec, case: Case, name: str, found: Explanation) -> None:
    if not isinstance(found, np.ndarray) or found.dtype != np.float32:
        raise _malformed(f"the explanation of {name} must be a float32 array")
    if np.isinf(found).any():
        raise _malformed(f"the explanation of {name} is infinite somewhere")
    image = explained_image(spec, case, name)
    if image is not None and found.shape != image[1].array.shape:
        raise _malformed(f"the explanation of {name} must be on the grid of the input image")


def _check_series(name: str, found: Explanation, of: TimeSeriesInput) -> None:
    if not isinstance(found, SeriesAttribution):
        raise _malformed(f"the explanation of {name} must be a SeriesAttribution, as its input is a time series")
    grids = {"values": (steps_of(of), len(of.channels)), "statics": (len(of.statics),)}
    for part, shape in grids.items():
        array = getattr(found, part)
        if not isinstance(array, np.ndarray) or array.dtype != np.float32:
            raise _malformed(f"the {part} that explain {name} must be a float32 array")
        if array.shape != shape:
            raise _malformed(f"the {part} that explain {name} are {array.shape}, and what is explained is {shape}")
        if not np.isfinite(array).all():
            raise _malformed(f"the {part} that explain {name} are not finite everywhere")


def _check_sequence(spec: ModelSpec, name: str, found: Explanation, bases: str) -> None:
    if not isinstance(found, SequenceAttribution):
        raise _malformed(f"the explanation of {name} must be a SequenceAttribution, as its input is a sequence")
    array, shape = found.values, (len(bases), len(BASES))
    if not isinstance(array, np.ndarray) or array.dtype != np.float32:
        raise _malformed(f"the values that explain {name} must be a float32 array")
    if array.shape != shape:
        raise _malformed(f"the values that explain {name} are {array.shape}, and what is explained is {shape}")
    if not np.isfinite(array).all():
        raise _malformed(f"the values that explain {name} are not finite everywhere")
    if np.abs(array[its_own(bases)]).max(initial=0.0) > spec.tolerance:
        raise _malformed(f"a base changes {name} by being what it is: its own place in the values must be 0")
    declared = spec.output(name)
    classes = [label.name for label in declared.classes] if isinstance(declared, Classification) else []
    if not isinstance(found.of, str) or not found.of or (classes and found.of not in classes):
        raise _malformed(f"of {name} is explained what is no class of it; its classes: {', '.join(classes) or 'none'}")


def its_own(bases: str) -> np.ndarray:
    """(bases, 4) booleans: the substitution of a base by itself; none where another letter stands."""
    letters = np.frombuffer(bases.encode("ascii", "replace"), np.uint8)
    return letters[:, None] == np.frombuffer(BASES.encode(), np.uint8)


def explained_sequence(spec: ModelSpec, case: Case) -> SequenceWindow | None:
    """The sequence that an answer is explained by; None where the case has none."""
    found = (case.inputs.get(item.name) for item in spec.accepts if isinstance(item, SequenceInput))
    return next((value for value in found if isinstance(value, SequenceWindow)), None)


def explained_series(spec: ModelSpec, case: Case) -> TimeSeriesInput | None:
    """The time series that an answer is explained by; None where the case has none."""
    series = (item for item in spec.accepts if isinstance(item, TimeSeriesInput))
    return next((item for item in series if isinstance(case.inputs.get(item.name), TimeSeries)), None)


def explained_image(spec: ModelSpec, case: Case, output: str) -> tuple[str, Image] | None:
    """The input image that an output's heat map lies on, with its name; None where the case has no image.

    It is the one that a segment is of, else the first one declared that the case has.
    """
    declared = spec.output(output)
    first = declared.of if isinstance(declared, Segment) else None
    for name in (first, *(item.name for item in spec.accepts)):
        found = case.inputs.get(name) if name is not None else None
        if name is not None and isinstance(found, Image):
            return name, found
    return None


def _malformed(reason: str) -> PredictionInvalid:
    return PredictionInvalid("explanation-malformed", reason)
