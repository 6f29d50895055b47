"""DICOM dates and times to instants: placed by TimezoneOffsetFromUTC or by configuration, never guessed.

PS3.5 6.2 (DA, TM, DT), PS3.3 C.12.1.1.8 (the offset that holds for the whole data set).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone, tzinfo

from pydicom.dataset import Dataset

from medflow.config import Settings
from medflow.dicom.elements import first_of
from medflow.records import Instant

DATE = re.compile(r"(\d{4})\.?(\d{2})\.?(\d{2})")  # with dots: ACR-NEMA, still met
TIME = re.compile(r"(\d{2})(?::?(\d{2})(?::?(\d{2})(?:\.(\d{1,6}))?)?)?")
OFFSET = re.compile(r"([+-])(\d{2})(\d{2})")
DATETIME = re.compile(r"(\d{8})(\d{2}(?:\d{2}(?:\d{2}(?:\.\d{1,6})?)?)?)([+-]\d{4})?")

NO_ZONE = "time-without-zone"


def date_of(text: str | None) -> date | None:
    """A DA value; None when absent or not a date."""
    match = DATE.fullmatch(text) if text else None
    try:
        return date(*map(int, match.groups())) if match else None
    except ValueError:
        return None


def offset_of(text: str | None) -> tzinfo | None:
    """An offset like +0100; None when absent or outside -12:00 to +14:00."""
    match = OFFSET.fullmatch(text) if text else None
    if match is None:
        return None
    sign, hours, minutes = match[1], int(match[2]), int(match[3])
    total = (hours * 60 + minutes) * (-1 if sign == "-" else 1)
    return timezone(timedelta(minutes=total)) if minutes < 60 and -720 <= total <= 840 else None


def local_time(day: str | None, time: str | None) -> datetime | None:
    """The local time that a DA and a TM value give together; a day alone is no instant."""
    on, match = date_of(day), TIME.fullmatch(time) if time else None
    if on is None or match is None:
        return None
    hour, minute, second = (int(part or 0) for part in match.groups()[:3])
    if hour > 23 or minute > 59 or second > 60:
        return None
    microsecond = int((match[4] or "0").ljust(6, "0"))
    start = datetime(on.year, on.month, on.day, hour, minute)  # noqa: DTZ001 - placed by the clock
    return start + timedelta(seconds=second, microseconds=microsecond)  # second 60 is a leap second


@dataclass(kw_only=True, slots=True)
class Clock:
    """Places the times of one data set. ``noted`` gathers what could not be placed."""

    zone: tzinfo | None
    noted: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, dataset: Dataset, settings: Settings) -> Clock:
        """The data set's own offset, else the configured zone, else none."""
        return cls(zone=offset_of(first_of(dataset, "TimezoneOffsetFromUTC")) or settings.zone)

    @property
    def notes(self) -> tuple[str, ...]:
        """Kebab-case notes for the tally."""
        return tuple(sorted(self.noted))

    def started(self, dataset: Dataset) -> Instant | None:
        """StudyDate and StudyTime."""
        return self._place(local_time(first_of(dataset, "StudyDate"), first_of(dataset, "StudyTime")))

    def acquired(self, dataset: Dataset) -> Instant | None:
        """AcquisitionDateTime, else AcquisitionDate and -Time, else ContentDate and -Time."""
        match = DATETIME.fullmatch(first_of(dataset, "AcquisitionDateTime") or "")
        if match and (moment := local_time(match[1], match[2])) is not None:
            return self._place(moment, offset_of(match[3]))
        for kind in ("Acquisition", "Content"):
            moment = local_time(first_of(dataset, f"{kind}Date"), first_of(dataset, f"{kind}Time"))
            if moment is not None:
                return self._place(moment)
        return None

    def _place(self, moment: datetime | None, zone: tzinfo | None = None) -> Instant | None:
        if moment is None:
            return None
        if (zone := zone or self.zone) is None:
            self.noted.add(NO_ZONE)
            return None
        try:
            return Instant.of(moment.replace(tzinfo=zone))
        except (ValueError, OverflowError):
            return None
