"""How every medflow process logs: text for people, or one JSON object a line for machines, on stderr.

A JSON line has time (UTC), level, logger and message, and of what a caller passes in ``extra`` only the ids and names
listed here. Of an exception, and of what a library that reads data warns of, it has the place and not the words: they
may quote what they were given.
"""

from __future__ import annotations

import logging
import sys
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from pythonjsonlogger.json import JsonFormatter as _JsonFormatter

from medflow.config import LogSettings

FIELDS = ("run", "model", "job", "chunk", "worker", "source", "code", "flow_run_id", "task_run_id")
TEXT = "%(asctime)s %(levelname)s %(message)s"
TRUSTED = ("medflow", "prefect", "uvicorn", "stamina", "distributed", "alembic")  # loggers whose words are not data


class JsonFormatter(_JsonFormatter):
    """One JSON object a line; takes and ignores the arguments that a logging configuration may give."""

    def __init__(self, *_arguments: object, **_options: object) -> None:
        super().__init__()

    def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
        """What a line says."""
        at = datetime.fromtimestamp(record.created, tz=UTC)
        log_data["time"] = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        log_data["level"] = record.levelname
        log_data["logger"] = record.name
        trusted = record.name.partition(".")[0] in TRUSTED
        log_data["message"] = record.message if trusted else f"said at {record.module}:{record.lineno}"
        for field in FIELDS:
            value = getattr(record, field, None)
            if isinstance(value, (str, int)):
                log_data[field] = value
        if record.exc_info and record.exc_info[0] is not None:
            kind, _, trace = record.exc_info
            log_data["error"] = kind.__name__
            log_data["at"] = [f"{at.filename}:{at.lineno} {at.name}" for at in traceback.extract_tb(trace)]


def set_up_logging(settings: LogSettings, *, text: logging.Handler | None = None, level: str | None = None) -> None:
    """Send what medflow logs to stderr, in the format and from the level that are configured.

    ``text`` is the handler for the text format where a plain one will not do; ``level`` is that of a process for which
    none is configured. In JSON the libraries' warnings come the same way, so that every line of stderr can be parsed.
    """
    chosen = settings.log_level or level or "WARNING"
    as_json = settings.log_format == "json"
    handler = logging.StreamHandler(sys.stderr) if as_json or text is None else text
    if as_json:
        handler.setFormatter(JsonFormatter())
    elif text is None:
        handler.setFormatter(logging.Formatter(TEXT))
    logger = logging.getLogger("medflow")
    logger.handlers[:] = [handler]
    logger.setLevel(chosen)
    logger.propagate = False
    libraries = max(logging.WARNING, logger.level)
    logging.getLogger("stamina").setLevel(libraries)  # announces each retry
    if as_json:
        logging.captureWarnings(True)
        logging.getLogger().handlers[:] = [handler]
        logging.getLogger().setLevel(libraries)
        sys.excepthook = _end


def _end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger("medflow").critical("ended by an unforeseen error", exc_info=(kind, error, trace))


def json_lines() -> bool:
    """Whether this process logs JSON: then nothing else may go to stderr."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger("medflow").handlers)
