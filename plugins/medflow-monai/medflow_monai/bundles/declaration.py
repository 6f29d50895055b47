"""From what a bundle says of itself, and what the user's map adds, to a model's declaration and a plan of its run.

Whatever is missing is refused, all of it in one message that shows what to write in the map: nothing is guessed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any, Literal

from medflow.errors import ConfigurationError
from medflow.plugin import (
    ANATOMICAL_STRUCTURE,
    SNOMED,
    Classification,
    ClassLabel,
    Coding,
    ImagingInput,
    ModelCard,
    ModelSpec,
    OutputSpec,
    Segment,
    UnitKind,
    Weights,
)
from medflow_monai.bundles.codes import is_snomed
from medflow_monai.bundles.label_map import Code, Label, LabelMap, Selection
from medflow_monai.bundles.metadata import Metadata, Tensor
from medflow_monai.bundles.organs import organ_of

ABSENT = ClassLabel(name="absent", code=Coding(system=SNOMED, code="2667000", display="Absent"))
PRESENT = ClassLabel(name="present", code=Coding(system=SNOMED, code="52101004", display="Present"))
BACKGROUND = {"background", "bg"}
PREDICTION = "pred"  # the key under which MONAI's evaluators keep what the network gave
MOST_ML = 200_000.0  # of a label with a code of the user's: a whole body
LEAST_SLICES = 10
ROOM_MIB = {2: 1024, 3: 3072}  # beside the weights, by dimensions
_MODALITIES = {
    "ct": ("CT",),
    "mr": ("MR",),
    "mri": ("MR",),
    "pt": ("PT",),
    "pet": ("PT",),
    "us": ("US",),
    "ultrasound": ("US",),
    "mg": ("MG",),
    "mammogram": ("MG",),
    "mammography": ("MG",),
    "cr": ("CR",),
    "dx": ("DX",),
    "xray": ("CR", "DX"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How a bundle is run; kept with it, as what is run is to be what was looked at when it was added.

    ``files`` has for each key that the preprocessing loads the inputs that stand in for the files it names, in the
    order of channels. ``channels`` has the output's name of each channel or label value, None where it is left out.
    ``repeat`` is how many channels a grey image is copied to, 0 for none.
    """

    config: tuple[str, ...]
    override: Mapping[str, Any]
    task: Literal["segmentation", "classification"]
    activation: Literal["softmax", "sigmoid"]
    dimensions: Literal[2, 3]
    files: Mapping[str, tuple[str, ...]]
    channels: Mapping[int, str | None]
    repeat: int = 0

    def digest(self) -> str:
        """A SHA-256 over it."""
        return sha256(json.dumps(asdict(self), sort_keys=True, default=str).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Bundle:
    """A folder's content as far as declaring it goes. ``files`` has each file's size and SHA-256."""

    folder: str
    metadata: Metadata
    config: tuple[str, ...]
    activation: str | None
    licence: str
    files: Mapping[str, tuple[int, str]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Declaration:
    """A bundle as a model."""

    spec: ModelSpec
    plan: Plan


def declare(bundle: Bundle, wishes: LabelMap) -> Declaration:
    """The model that a bundle is.

    Raises
    ------
    ConfigurationError
        Something that a model must say is said neither by the bundle nor by the map; the message lists all of it.
    """
    return _Declaring(bundle, wishes).run()


def kebab(text: str) -> str:
    """A name as medflow's models have them."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:63]


class _Declaring:
    """One bundle on its way to a declaration; what stands against it gathers in ``problems``, what to write in
    ``template``.
    """

    def __init__(self, bundle: Bundle, wishes: LabelMap) -> None:
        self.bundle, self.wishes, self.metadata = bundle, wishes, bundle.metadata
        self.problems: list[str] = []
        self.template: dict[str, Any] = {}
        self.used: set[str] = set()

    def run(self) -> Declaration:
        source, target = self._tensors()
        dimensions: Literal[2, 3] = 2 if len(source.spatial_shape) == 2 else 3
        task = self.wishes.task or _task(source, target)
        accepts, files, repeat = self._inputs(source, dimensions)
        channels = self._channels(target, task)
        activation = self.wishes.activation or self.bundle.activation or "softmax"
        if task == "segmentation":
            if dimensions == 2:
                self.problems.append("it segments single images, and medflow takes masks of volumes only")
            outputs = self._segments(channels)
        elif activation == "sigmoid":
            outputs = self._findings(channels)
        else:
            outputs = self._classes(channels)
        self._refuse_leftovers()
        plan = Plan(
            config=self.bundle.config,
            override=self.wishes.override,
            task=task,
            activation="sigmoid" if activation == "sigmoid" else "softmax",
            dimensions=dimensions,
            files=files,
            channels={number: self._output_name(name, task) for number, name in channels.items()},
            repeat=repeat,
        )
        return Declaration(spec=self._spec(accepts, outputs, plan), plan=plan)

    def _tensors(self) -> tuple[Tensor, Tensor]:
        images = {name: item for name, item in self.metadata.inputs.items() if len(item.spatial_shape) in (2, 3)}
        if len(images) != 1 or len(self.metadata.inputs) != 1:
            names = ", ".join(self.metadata.inputs) or "none"
            raise ConfigurationError(
                f"its network takes {names}: medflow runs bundles whose network takes one image, if of several channels"
            )
        if PREDICTION not in self.metadata.outputs:
            names = ", ".join(self.metadata.outputs) or "nothing"
            raise ConfigurationError(
                f"its network gives {names}: medflow runs bundles that segment or classify, and call that {PREDICTION}"
            )
        return next(iter(images.values())), self.metadata.outputs[PREDICTION]

    # --- what it takes ---------------------------------------------------------------------------------------------

    def _inputs(
        self, source: Tensor, dimensions: Literal[2, 3]
    ) -> tuple[tuple[ImagingInput, ...], dict[str, tuple[str, ...]], int]:
        key = next(iter(self.metadata.inputs))
        channels = source.num_channels or 1
        if channels == 1 or self.wishes.repeat_channels:
            accepts = (self._input(key, self.wishes, source, dimensions, "every"),)
            return accepts, {key: (key,)}, channels if channels > 1 else 0
        names = [source.channel_def.get(number, "") for number in range(channels)]
        asked = {kebab(name): item for name, item in self.wishes.inputs.items()}
        ordered = [kebab(name) for name in names]
        if sorted(asked) != sorted(ordered):
            ordered = list(asked)
        if len(asked) != channels:
            self.problems.append(
                f"its network takes {channels} channels ({', '.join(filter(None, names)) or 'not named'}): say in the "
                "map which series of a study each is (`inputs`), or, for a grey image in colour, `repeat_channels`"
            )
            self.template["inputs"] = {
                name or f"channel {i}": {"descriptions": ["..."]} for i, name in enumerate(names)
            }
            return (), {}, 0
        accepts = tuple(self._input(name, asked[name], source, dimensions, asked[name].prefer) for name in ordered)
        return accepts, {key: tuple(ordered)}, 0

    def _input(
        self,
        name: str,
        wanted: Selection,
        source: Tensor,
        dimensions: Literal[2, 3],
        prefer: Literal["every", "newest", "best"],
    ) -> ImagingInput:
        modality = wanted.modality or self.wishes.modality or _MODALITIES.get(kebab(source.modality).replace("-", ""))
        if not modality:
            said = f"says {source.modality!r}" if source.modality else "says nothing"
            problem = f"its metadata {said} where the modality stands: give DICOM's in the map (`modality`)"
            if problem not in self.problems:
                self.problems.append(problem)
            self.template["modality"] = ["CT"]
        return ImagingInput(
            name=name,
            modality=modality or ("?",),  # refused in the end
            dimensions=dimensions,
            body_parts=wanted.body_parts,
            descriptions=wanted.descriptions,
            excluded_descriptions=wanted.excluded_descriptions,
            contrast=wanted.contrast,
            slice_thickness_mm=wanted.slice_thickness_mm,
            min_slices=wanted.min_slices or (LEAST_SLICES if dimensions == 3 else 1),
            take=wanted.take,
            prefer=prefer,
        )

    # --- what it gives ---------------------------------------------------------------------------------------------

    def _channels(self, target: Tensor, task: str) -> dict[int, str]:
        if self.wishes.channel_def is not None:
            return dict(sorted(self.wishes.channel_def.items()))
        named = dict(sorted(target.channel_def.items()))
        one_image = task == "segmentation" and target.num_channels == 1  # whose values are the labels
        count = target.num_channels
        if not named or not (one_image or count is None or sorted(named) == list(range(count))):
            self.problems.append(
                f"its metadata names {len(named)} of {count or 'its'} output channels: name all in the map "
                "(`channel_def`)"
            )
            self.template["channel_def"] = {str(number): named.get(number, "...") for number in range(count or 1)}
        return named

    def _output_name(self, label: str, task: str) -> str | None:
        if task == "segmentation" and label.lower() in BACKGROUND:
            return None
        found, left_out = self._wish(label)
        return None if left_out and found is None else kebab(label)

    def _wish(self, label: str) -> tuple[Label | None, bool]:
        """What the map says of a label, and whether it says anything: it may say that the label is left out."""
        for name, wish in self.wishes.labels.items():
            if kebab(name) == kebab(label):
                self.used.add(name)
                return wish, True
        return None, False

    def _coded(self, label: str) -> Label | None:
        """What the map or the shipped list says of a label; None if it is to be left out, or nothing is known."""
        wish, said = self._wish(label)
        if said:
            if wish is not None:
                self._check(label, wish)
            return wish
        if organ := organ_of(label):
            return Label(code=organ.code.code, display=organ.code.display, valid_ml=(0.0, organ.most_ml))
        self.template.setdefault("labels", {})[label] = {"code": "...", "display": "..."}
        return None

    def _check(self, name: str, code: Code) -> None:
        if code.system == SNOMED and not is_snomed(code.code):
            self.problems.append(f"{code.code!r} ({name}) is no SNOMED CT code: its check digit is wrong")
        for part in (getattr(code, "site", None), getattr(code, "category", None)):
            if part is not None:
                self._check(name, part)

    def _segments(self, channels: Mapping[int, str]) -> tuple[OutputSpec, ...]:
        found: list[OutputSpec] = []
        for label in channels.values():
            if label.lower() in BACKGROUND or (coded := self._coded(label)) is None:
                continue
            code = coded.coding(label)
            found.append(
                Segment(
                    name=kebab(label),
                    body_site=coded.site.coding(label) if coded.site else code,
                    property_type=code if coded.site else None,
                    property_category=coded.category.coding(label) if coded.category else ANATOMICAL_STRUCTURE,
                    valid_ml=coded.valid_ml or (0.0, MOST_ML),
                )
            )
        return tuple(found)

    def _findings(self, channels: Mapping[int, str]) -> tuple[OutputSpec, ...]:
        """Classes that do not exclude each other: each is a question of its own."""
        found = []
        for label in channels.values():
            if (coded := self._coded(label)) is not None:
                found.append(
                    Classification(
                        name=kebab(label),
                        code=coded.coding(label),
                        classes=(ABSENT, PRESENT),
                        positive=PRESENT.name,
                        threshold=self.wishes.threshold,
                        indeterminate=self.wishes.indeterminate,
                        body_site=coded.site.coding(label) if coded.site else None,
                    )
                )
        return tuple(found)

    def _classes(self, channels: Mapping[int, str]) -> tuple[OutputSpec, ...]:
        """Classes that exclude each other: one question, of which no class can be left out."""
        coded = {label: self._coded(label) for label in channels.values()}
        for label, code in coded.items():
            if code is None and label not in self.template.get("labels", {}):
                self.problems.append(f"the class {label} cannot be left out: its probability belongs to the answer")
        asked = self.wishes.code
        if asked is None:
            self.problems.append("what it classifies has no code: give one in the map (`code`)")
            self.template["code"] = {"code": "...", "display": "..."}
            return ()
        self._check("code", asked)
        names = {label: kebab(label) for label in channels.values()}
        positive = self.wishes.positive and kebab(self.wishes.positive)
        if positive and positive not in names.values():
            self.problems.append(
                f"no class is called {self.wishes.positive!r} (`positive`): {', '.join(names.values())}"
            )
        classes = tuple(ClassLabel(name=names[label], code=code.coding(label)) for label, code in coded.items() if code)
        return (
            Classification(
                name=kebab(asked.display or "") or "class",
                code=asked.coding(self.metadata.task or "Classification"),
                classes=classes,
                positive=positive,
                threshold=self.wishes.threshold,
                indeterminate=self.wishes.indeterminate,
            ),
        )

    # --- all of it -------------------------------------------------------------------------------------------------

    def _refuse_leftovers(self) -> None:
        unknown = sorted(set(self.wishes.labels) - self.used)
        if unknown:
            self.problems.append(f"the map speaks of labels that the bundle does not have: {', '.join(unknown)}")
        if missing := self.template.get("labels"):
            self.problems.append(f"these labels have no code, and medflow guesses none: {', '.join(missing)}")
        if self.problems:
            example = json.dumps(self.template)
            hint = f". In a file to name with --map: {example}" if self.template else ""
            hint += " (null leaves a label out)" if missing else ""
            raise ConfigurationError("; ".join(self.problems) + hint, template=self.template)

    def _spec(self, accepts: tuple[ImagingInput, ...], outputs: Sequence[OutputSpec], plan: Plan) -> ModelSpec:
        wishes, metadata, bundle = self.wishes, self.metadata, self.bundle
        if not outputs:
            raise ConfigurationError("every label of the bundle is left out: nothing would come of it")
        doubles = [name for name, count in Counter(item.name for item in outputs).items() if count > 1]
        if doubles:
            raise ConfigurationError(
                f"labels are not unique: {', '.join(doubles)}; name them in the map (`channel_def`)"
            )
        largest = max((size for name, (size, _) in bundle.files.items() if name.startswith("models/")), default=0)
        weights = [Weights(file=name, sha256=digest) for name, (_, digest) in sorted(bundle.files.items())]
        return ModelSpec(
            name=wishes.name or kebab(bundle.folder),
            version=metadata.version,
            title=wishes.title or metadata.name or metadata.task or bundle.folder,
            unit=UnitKind.SERIES if len(accepts) == 1 else UnitKind.STUDY,
            accepts=accepts,
            outputs=tuple(outputs),
            card=self._card(),
            weights=(*weights, Weights(file="(plan)", sha256=plan.digest())),
            memory_mib=wishes.memory_mib or ROOM_MIB[plan.dimensions] + (2 * largest >> 20),
            tolerance=1e-3,
        )

    def _card(self) -> ModelCard:
        metadata, card = self.metadata, self.wishes.card
        metrics = {f"{name}, as the bundle states it": value for name, value in metadata.metrics.items()}
        return ModelCard(
            intended_use=card.intended_use or metadata.intended_use or "The bundle states none: NOT FOR PATIENTS.",
            training_data=card.training_data or metadata.data_source or "The bundle states none.",
            licence=card.licence or "; ".join(filter(None, (self.bundle.licence, metadata.copyright))) or "Not stated.",
            metrics=card.metrics or metrics or {"none": "the bundle states none"},
            limits=card.limits
            or f"{metadata.description or metadata.task}. A MONAI bundle of others, run as it is: medflow has measured "
            "nothing of it. It answers for every series that is selected for it.",
        )


def _task(source: Tensor, target: Tensor) -> Literal["segmentation", "classification"]:
    spatial = len(target.spatial_shape) == len(source.spatial_shape)
    flat = target.spatial_shape in ((1, target.num_channels), (target.num_channels,), (1,), ())
    if target.type == "probabilities" or flat:
        return "classification"
    if spatial and target.format in ("segmentation", "labels", "classes"):
        return "segmentation"
    raise ConfigurationError(
        f"its network gives {target.type or 'data'} of the format {target.format or 'none'}: medflow runs bundles that "
        "segment or classify (say which in the map, `task`, if this one does)"
    )
