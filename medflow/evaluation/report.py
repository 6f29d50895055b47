"""A report as a file: Markdown with its plots beside it, or one HTML page with everything inside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from medflow.drawing import data_uri
from medflow.errors import ConfigurationError
from medflow.evaluation.pieces import (
    COLUMNS,
    DRIFT,
    DRIFT_ALT,
    NAMES,
    Picture,
    Section,
    Table,
    drift_section,
    sections,
    title_of,
)
from medflow.evaluation.plots import drift_bars, plots
from medflow.evaluation.result import Evaluation, InputDrift

__all__ = ["COLUMNS", "NAMES", "html", "html_page", "markdown", "markdown_page", "page", "write_drift", "write_report"]

HTML = (".html", ".htm")
TEMPLATE = "report.html.jinja"


def write_report(evaluation: Evaluation, path: Path) -> list[Path]:
    """Write the report to ``path``: HTML where its name says so, else Markdown with the plots beside it.

    Returns every file written.

    Raises
    ------
    ConfigurationError
        The folder cannot be written.
    """
    drawn = plots(evaluation)
    return _write(title_of(evaluation), sections(evaluation, list(drawn)), drawn, path)


def write_drift(model: str, drift: InputDrift, path: Path) -> list[Path]:
    """Write a report on the drift of a model's inputs alone; like `write_report`."""
    shown = Section(heading="Plots", pictures=[Picture(name="drift", title=DRIFT, alt=DRIFT_ALT)])
    return _write(f"{model}: inputs", [drift_section(drift), shown], {"drift": drift_bars(drift)}, path)


def _write(title: str, parts: Sequence[Section], drawn: Mapping[str, bytes], path: Path) -> list[Path]:
    written = [path]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() in HTML:
            text = html_page(title, parts, {name: data_uri(png) for name, png in drawn.items()})
        else:
            pictures = {name: path.with_name(f"{path.stem}-{name}.png") for name in drawn}
            for name, png in drawn.items():
                pictures[name].write_bytes(png)
            written += pictures.values()
            text = markdown_page(title, parts, {name: picture.name for name, picture in pictures.items()})
        path.write_text(text, "utf-8")
    except OSError as error:
        raise ConfigurationError(f"the report cannot be written to {path} ({error.strerror})") from None
    return written


def page(evaluation: Evaluation) -> str:
    """The report as Markdown with its plots inside, as one text."""
    return markdown(evaluation, _inside(evaluation))


def html(evaluation: Evaluation) -> str:
    """The report as one HTML page: it asks for nothing from elsewhere and runs nothing."""
    pictures = _inside(evaluation)
    return html_page(title_of(evaluation), sections(evaluation, list(pictures)), pictures)


def html_page(title: str, parts: Sequence[Section], pictures: Mapping[str, str]) -> str:
    """A page of these parts; ``pictures`` says where each plot is."""
    from jinja2 import Environment, StrictUndefined  # only a page needs it

    text = files("medflow.evaluation").joinpath(TEMPLATE).read_text("utf-8")
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return template.from_string(text).render(title=title, parts=parts, pictures=pictures)


def markdown(evaluation: Evaluation, pictures: Mapping[str, str]) -> str:
    """The report as Markdown; ``pictures`` says where each plot is."""
    return markdown_page(title_of(evaluation), sections(evaluation, list(pictures)), pictures)


def markdown_page(title: str, parts: Sequence[Section], pictures: Mapping[str, str]) -> str:
    """Markdown of these parts; ``pictures`` says where each plot is."""
    found = [f"# {title}"]
    for part in parts:
        found += [] if part.heading is None else [f"## {part.heading}"]
        found += part.paragraphs
        found += [f"> {note}." for note in part.notes]
        found += [_table(table) for table in part.tables]
        found += part.remarks
        found += [f"![{picture.title}]({pictures[picture.name]})" for picture in part.pictures]
    return "\n\n".join(found) + "\n"


def _inside(evaluation: Evaluation) -> dict[str, str]:
    return {name: data_uri(picture) for name, picture in plots(evaluation).items()}


def _table(table: Table) -> str:
    lines = [_row(table.head), f"| --- |{' ---: |' * (len(table.head) - 1)}"]
    return "\n".join([*lines, *map(_row, table.rows)])


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
