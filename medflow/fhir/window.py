"""What changed on a FHIR server since a moment: one type, page by page, so that nothing falls between two pages.

Resources change while they are read. Many servers cut their pages by offset: a resource that changes on a page already
read moves to the end, all others move up by one, and one of them is on no page. So where the server sorts by
`_lastUpdated`, each page is a search of its own that begins where the last one ended, and must show the end of that
again; next links are followed where that does not lead on (many resources of one millisecond), or cannot be relied on.

There is no upper bound: it would need a clock that agrees with the one that wrote `meta.lastUpdated`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from urllib.parse import parse_qs, urlsplit

from medflow.fhir.search import RESTARTS, LinkExpired, Page, Params, RecordServer, SearchRefused, is_match, updated_us

MILLISECOND_US, SECOND_US = 1000, 1_000_000
TAIL = 5  # entries that two pages share, so that one of them may change meanwhile
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A page, and until when everything is read once it is (None: unknown until the end).

    The last step has no page. ``unsure``: the server does not sort, and what was said before of this window is not so.
    ``again``: id and time of what the page before had too.
    """

    page: Page | None
    read_us: int | None = None
    unsure: bool = False
    again: frozenset[tuple[str, int]] = frozenset()


class Window:
    """One type since ``since_us`` (None: all of it). ``notes`` are what the server did not do as asked, when read.

    Parameters
    ----------
    server
        Who is asked.
    kind
        The resource type.
    since_us
        From when on, in the server's time.
    count
        How many resources a page is asked to have.
    extra
        Further parameters: _include, _revinclude.
    """

    def __init__(
        self, server: RecordServer, kind: str, *, since_us: int | None, count: int, extra: Params = ()
    ) -> None:
        self._server, self._kind, self._count, self._extra = server, kind, count, tuple(extra)
        self._url = f"{server.base_url}/{kind}"
        self._since_us = since_us
        self._from_us = since_us  # where the present search begins
        self._last_us: int | None = None  # of the last entry read
        self._latest_us: int | None = None  # of any entry read
        self._read: list[tuple[str, int]] = []  # the last page: ids and times
        self._again: frozenset[tuple[str, int]] = frozenset()
        self._asks_sort = True
        self._sorted = True  # as far as it was seen
        self._promised = True  # ... and as the self links say
        self._seeks = True
        self._cut_off = False  # where no link and no search leads on
        self._seen: set[str] = set()
        self._restarts = 0
        self.notes: Counter[str] = Counter()

    def steps(self) -> Iterator[Step]:
        """Pages as they come, and a last step once all are read.

        Raises
        ------
        SearchRefused, ConfigurationError, SourceUnavailable
            As for `RecordServer.page`. What came before can be kept.
        """
        page: Page | None = self._first()
        while page is not None:
            sure = self._sorted and self._promised
            yield Step(page=page, read_us=self._last_us if sure else None, unsure=not sure, again=self._again)
            self._again = frozenset()
            page = self._following(page)
        # of an answer that was cut off nobody knows what it lacks: a mark behind it would leave that out for good
        yield Step(page=None, read_us=None if self._cut_off else self._latest_us, unsure=self._cut_off)

    # --- where pages come from -------------------------------------------------------------------------------------

    def _first(self) -> Page:
        page = self._search(self._since_us)
        if self._since_us is not None and not _matches(page) and self._hides(self._since_us):
            page = self._search(self._since_us)  # unless it came just now
            if not _matches(page):
                self.notes["finds-nothing-by-lastUpdated"] += 1
                self._since_us = self._from_us = None
                self._seeks = False
                page = self._search(None)
        self._judge(page)
        return page

    def _hides(self, since_us: int) -> bool:
        """Whether a window that seems to be empty is not: servers may answer to what they do not know with nothing."""
        try:
            newest = self._server.page(self._url, [("_sort", "-_lastUpdated"), ("_count", "1")])
        except (SearchRefused, LinkExpired):
            return False
        times = [updated_us(entry) for entry in _matches(newest)]
        return any(time is not None and time >= since_us for time in times)

    def _following(self, page: Page) -> Page | None:
        # a server that gives no links at all may have cut its answer where the page was full
        cut = page.next_url is None and page.self_url is None and len(_matches(page)) >= self._count
        if page.next_url is None and not cut:
            return None
        if self._seeks and self._sorted and (self._promised or cut):
            found = self._sought()
            if found is not None:
                return found
        if page.next_url is not None:
            return self._linked(page.next_url)
        self.notes["full-page-without-links"] += 1
        self._cut_off = True
        return None

    def _sought(self) -> Page | None:
        """The page of a new search that begins at the end of the last one; None where that leads nowhere new.

        The new page must show some of the last one again, unchanged: else something may lie between the two.
        """
        if not self._read:
            return None
        tail = self._read[-(1 + min(TAIL - 1, len(self._read) // 4)) :]
        end_us = tail[0][1] - MILLISECOND_US  # what is written to the millisecond may have been rounded up
        whole_us = min(self._read[0][1] - MILLISECOND_US, end_us // SECOND_US * SECOND_US)  # some index seconds only
        if self._from_us is not None and end_us <= self._from_us:
            return None
        for start_us in (end_us, whole_us):
            try:
                page = self._search(start_us)
            except SearchRefused:
                break  # what it takes without a moment, it may not take with one
            if self._ignored(page, start_us):
                break
            found = _times(page)
            leads_on = start_us == end_us or any(us > self._read[-1][1] for _, us in found)
            if leads_on and not set(self._read).isdisjoint(found):
                self._again = frozenset(self._read)
                self._begin(start_us)
                self._judge(page)
                return page
        self._seeks = False  # what must be there is not: links are all that is left
        return None

    def _linked(self, link: str) -> Page:
        try:
            page = self._server.follow(link, self._seen)
        except LinkExpired:
            return self._anew()
        self._judge(page, linked=True)
        return page

    def _anew(self) -> Page:
        """The window searched anew, from where it is known to be read, as its links have expired."""
        self._restarts += 1
        if self._restarts > RESTARTS:
            raise self._server.forgetful()
        sure = self._sorted and self._promised and self._last_us is not None
        start_us = self._last_us - MILLISECOND_US if sure and self._last_us is not None else self._since_us
        self._begin(start_us)
        self._last_us = None
        page = self._search(start_us)
        self._judge(page)
        return page

    def _begin(self, start_us: int | None) -> None:
        if start_us != self._from_us:
            self._restarts = 0
        self._from_us = start_us
        self._seen.clear()

    def _search(self, start_us: int | None) -> Page:
        asked: list[tuple[str, str]] = [("_count", str(self._count)), *self._extra]
        if start_us is not None:
            asked.insert(0, ("_lastUpdated", f"ge{instant_text(start_us)}"))
        if self._asks_sort:
            try:
                return self._server.page(self._url, [*asked, ("_sort", "_lastUpdated")])
            except SearchRefused as error:
                if error.status != 400:
                    raise
                page = self._server.page(self._url, asked)  # refused again, it was not for the order
                self._asks_sort = self._promised = False
                return page
        return self._server.page(self._url, asked)

    # --- what a page says of the server ----------------------------------------------------------------------------

    def _judge(self, page: Page, *, linked: bool = False) -> None:
        """Learn from a page how far is read, and whether the server does as asked."""
        self.notes.update(f"server-{code}" for code in set(page.warnings) if not self.notes[f"server-{code}"])
        self._ignored(page, self._from_us)
        if not linked:  # the self link of a page that a link led to need not say what was asked at first
            self._believe(page)
        known = [us for _, us in _times(page)]
        before = [self._last_us] if linked and self._last_us is not None else []
        if len(known) < len(_matches(page)) or any(a > b for a, b in pairwise([*before, *known])):
            self._sorted = False
        if known:
            self._last_us = max(self._last_us or known[0], *known)
            self._latest_us = max(self._latest_us or known[0], *known)
            self._read = _times(page)

    def _believe(self, page: Page) -> None:
        """What a search's self link says that was used of what was asked (R4 search.html#conformance)."""
        used = {} if page.self_url is None else parse_qs(urlsplit(page.self_url).query)
        if used.get("_sort") != ["_lastUpdated"]:
            self._promised = False
        if page.self_url is not None and self._from_us is not None and "_lastUpdated" not in used:
            self.notes["self-link-without-lastUpdated"] = 1

    def _ignored(self, page: Page, start_us: int | None) -> bool:
        """Whether the server answered as if no moment had been named; then all it has comes each time."""
        if start_us is None or all(us >= start_us - SECOND_US for _, us in _times(page)):
            return False
        self.notes["ignores-lastUpdated"] = 1
        self._seeks = False
        return True


def _matches(page: Page) -> Sequence[dict[str, Any]]:
    return [entry for entry in page.entries if is_match(entry)]


def _times(page: Page) -> list[tuple[str, int]]:
    return [(_id(entry), us) for entry in _matches(page) if (us := updated_us(entry)) is not None]


def _id(entry: dict[str, Any]) -> str:
    resource = entry.get("resource")
    return str(resource.get("id")) if isinstance(resource, dict) else ""


def instant_text(moment_us: int) -> str:
    """Microseconds since 1970-01-01T00:00Z as a FHIR instant, to the millisecond."""
    return (EPOCH + timedelta(microseconds=moment_us)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
