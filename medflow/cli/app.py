"""The commands."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from medflow import replay, steps
from medflow.cli import config as config_command
from medflow.cli import demo as demo_command
from medflow.cli import deploy as deploy_command
from medflow.cli import doctor as doctor_command
from medflow.cli import evaluate as evaluate_command
from medflow.cli import fetch as fetch_command
from medflow.cli import models as models_command
from medflow.cli import plugins as plugin_commands
from medflow.cli import receive as receive_command
from medflow.cli import records as records_command
from medflow.cli import samples as samples_command
from medflow.cli import select as select_command
from medflow.cli import services, watch
from medflow.cli import show as show_command
from medflow.cli import train as train_command
from medflow.cli import variants as variants_command
from medflow.cli import vcf as vcf_command
from medflow.cli import volume as volume_command
from medflow.cli.extensions import CommandsOfPlugins
from medflow.cli.flows import run_nightly
from medflow.cli.output import (
    COULD_NOT_RUN,
    exit_status,
    finish,
    logging_elsewhere,
    out,
    progress_bar,
    say,
    say_error,
    set_up_logging,
    show_table,
)
from medflow.cli.site import Home, Json, Names, as_instant, here
from medflow.config import load_settings
from medflow.errors import ConfigurationError, MedflowError
from medflow.inference.runner_apart import models as models_to_run
from medflow.store import Store, ledger
from medflow.store import jobs as job_store
from medflow.store.standing import JOB_STATES

app = typer.Typer(
    cls=CommandsOfPlugins,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
ingest_app = typer.Typer(no_args_is_help=True, help="Take files, and what servers have, into the store.")
withdraw_app = typer.Typer(no_args_is_help=True, help="Take back what a file gave.")
retry_app = typer.Typer(no_args_is_help=True, help="Try again what was rejected, died, or could not be delivered.")
db_app = typer.Typer(no_args_is_help=True, help="The database.")
app.add_typer(ingest_app, name="ingest")
app.add_typer(withdraw_app, name="withdraw")
app.add_typer(retry_app, name="retry")
app.add_typer(db_app, name="db")
app.add_typer(plugin_commands.app, name="plugin")
app.add_typer(models_command.app, name="models")
app.command()(evaluate_command.evaluate)
app.command()(evaluate_command.drift)
app.command()(train_command.train)
app.command()(select_command.select)
app.command()(services.worker)
app.command()(show_command.show)
app.command()(show_command.explain)
app.command()(variants_command.scores)
app.command()(samples_command.samples)
app.command()(volume_command.volume)
app.command()(receive_command.receive)
app.command()(services.serve)
app.command()(watch.status)
app.command()(watch.metrics)
app.command()(config_command.config)
app.command()(doctor_command.doctor)
app.command()(deploy_command.deploy)

ingest_app.command("dicomweb")(fetch_command.ingest_dicomweb)
ingest_app.command("pacs")(fetch_command.ingest_pacs)
withdraw_app.command("vcf")(vcf_command.withdraw_vcf)

Paths = Annotated[list[Path], typer.Argument(help="Files and folders.", show_default=False)]
Explain = Annotated[bool, typer.Option("--explain", help="Have models that can show what led to their answers.")]


@app.callback()
def _options(
    home: Home = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens, on stderr.")] = False,
) -> None:
    """Run a hospital's models over its images, records and genomes; results go back as FHIR."""
    set_up_logging(verbose)


# --- the path ----------------------------------------------------------------------------------------------------


def _ingest(kind: str, paths: list[Path], as_json: bool, **options: Any) -> NoReturn:
    site = here()
    with progress_bar(f"ingesting {kind}") as advance:
        tally = steps.ingest(site, steps.source_of(kind, paths, **options), progress=advance)
    finish(tally.as_json(), as_json=as_json, title=f"ingest {kind}")


@ingest_app.command("dicom")
def ingest_dicom(
    paths: Paths,
    in_place: Annotated[bool, typer.Option(help="Leave the files where they are; they must stay there.")] = False,
    remove_received: Annotated[bool, typer.Option(help="Remove what `receive` spooled, once it is stored.")] = False,
    as_json: Json = False,
) -> None:
    """DICOM files, folders, zip archives and DICOMDIR media."""
    _ingest("dicom", paths, as_json, in_place=in_place, remove_received=remove_received)


ingest_app.command("fhir")(records_command.ingest_fhir)


ingest_app.command("vcf")(vcf_command.ingest_vcf)


@ingest_app.command("fasta")
def ingest_fasta(paths: Paths, as_json: Json = False) -> None:
    """Nucleotide sequences in FASTA, plain or gzipped."""
    _ingest("fasta", paths, as_json)


@app.command()
def score(
    model: Names = None,
    as_of: Annotated[str | None, typer.Option(help="Score as if it were this moment, with a zone.")] = None,
    explain: Explain = False,
    as_json: Json = False,
) -> None:
    """Run the models over what is new to them."""
    site = here(ahead=True)
    with progress_bar("scoring") as advance, models_to_run(site.settings, set_up_logging=logging_elsewhere()) as loaded:

        def tick(name: str, count: int, cases: int) -> None:
            advance(count, description=name, total=cases if count == 0 else None)

        tally = steps.score(site, model or (), as_of=as_instant(as_of), explain=explain, loaded=loaded, progress=tick)
    finish(tally.as_json(), as_json=as_json, title="score")


@app.command()
def deliver(
    to: Annotated[
        list[str] | None, typer.Option("--to", help="A folder, a FHIR base URL, or a configured name; repeatable.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Send the results that the targets have not been sent yet."""
    site = here()
    with progress_bar("delivering") as advance:
        tally = steps.deliver(site, to or None, progress=advance)
    finish(tally.as_json(), as_json=as_json, title="deliver")


@app.command()
def nightly(
    source: Annotated[list[str] | None, typer.Option("--source", help="A configured source; repeatable.")] = None,
    model: Names = None,
    as_of: Annotated[str | None, typer.Option(help="Score as if it were this moment, with a zone.")] = None,
    explain: Explain = False,
    to: Annotated[
        list[str] | None, typer.Option("--to", help="A configured target, a folder, or a FHIR base URL; repeatable.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Ingest from the configured sources, score, deliver: the scheduled run, as a Prefect flow."""
    moment = as_instant(as_of)
    settings = load_settings()
    settings.chosen_sources(source or None)  # a name that is wrong is told before a flow begins
    settings.chosen_targets(to or None)
    if to and len(to) > 1 and not settings.targets.keys() >= set(to):
        raise ConfigurationError("several targets of a night are all named as configured (MEDFLOW_TARGETS)")
    target = to[0] if to and len(to) == 1 and to[0] in settings.targets else None
    if to and target is None:
        os.environ["MEDFLOW_DELIVER_TO"] = ",".join(to)  # a path or address is no Prefect parameter
    as_of_time = moment.datetime() if moment else None
    counts = run_nightly(sources=source, models=model, as_of=as_of_time, target=target, explain=explain)
    if as_json:
        finish(counts, as_json=True, title="nightly")
    for name, part in counts.items():
        say(part, name)
    raise typer.Exit(exit_status(counts))


@app.command()
def demo(
    home: Annotated[Path | None, typer.Option(help="Where to keep it; a new temporary folder otherwise.")] = None,
    as_json: Json = False,
) -> None:
    """The main job on sample data: nothing else is needed."""
    demo_command.run(home, as_json=as_json)


# --- where things stand ------------------------------------------------------------------------------------------


@app.command()
def rejects(limit: Annotated[int, typer.Option(help="How many to list.")] = 50, as_json: Json = False) -> None:
    """The inputs that were not taken, and why."""
    site = here()
    with site.store.reading() as connection:
        found = ledger.list_rejects(connection, limit=limit)
    rows = [[item.id, item.kind, item.code, item.reason, item.origin, item.seen] for item in found]
    _list(["id", "kind", "code", "reason", "origin", "seen"], rows, as_json)


@app.command()
def jobs(
    state: Annotated[list[str] | None, typer.Option("--state", help="ready, leased, done, failed or dead.")] = None,
    model: Annotated[str | None, typer.Option(help="Only those of this model.")] = None,
    limit: Annotated[int, typer.Option(help="How many to list.")] = 50,
    as_json: Json = False,
) -> None:
    """What could not be scored, and why (or the jobs in the states you name); those made last first."""
    if unknown := sorted(set(state or ()) - set(JOB_STATES)):
        raise ConfigurationError(f"no job is {', '.join(unknown)}: the states are {', '.join(JOB_STATES)}")
    site = here()
    with site.store.reading() as connection:
        found = job_store.list_jobs(connection, states=state or ("failed", "dead"), model=model, limit=limit)
    rows = [
        [job.id, job.model, job.version, job.unit, job.state, job.attempts, job.error_code, job.error] for job in found
    ]
    _list(["id", "model", "version", "unit", "state", "attempts", "code", "error"], rows, as_json)


# --- trying again ------------------------------------------------------------------------------------------------


@retry_app.command("rejects")
def retry_rejects(
    reference: Annotated[Path | None, typer.Option(help="FASTA to check refused VCFs against again.")] = None,
    samples: Annotated[Path | None, typer.Option(help="CSV sheet that says whose refused samples are.")] = None,
    as_json: Json = False,
) -> None:
    """Offer every open reject again; what is taken now is settled."""
    site = here()
    with progress_bar("replaying rejects") as advance:
        tally = replay.replay_rejects(site, reference=reference, samples=samples, progress=advance)
    finish(tally.as_json(), as_json=as_json, title="retry rejects")


@retry_app.command("jobs")
def retry_jobs(
    ids: Annotated[list[int] | None, typer.Argument(help="Job ids; all dead and failed ones otherwise.")] = None,
    as_json: Json = False,
) -> None:
    """Make dead and failed jobs ready; the next `medflow score` takes them."""
    site = here()
    finish({"ready": replay.replay_jobs(site, ids or None)}, as_json=as_json, title="retry jobs")


@retry_app.command("deliveries")
def retry_deliveries(
    to: Annotated[str | None, typer.Option("--to", help="Only this target's.")] = None,
    overwrite: Annotated[
        bool, typer.Option(help="Write over what others changed or removed at the server since it was delivered.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make dead, failed and withheld deliveries pending; the next `medflow deliver` sends them."""
    site = here()
    pending = replay.replay_deliveries(site, to, overwrite=overwrite)
    finish({"pending": pending}, as_json=as_json, title="retry deliveries")


@db_app.command("upgrade")
def db_upgrade() -> None:
    """Create the database's schema, or bring it to this version's."""
    revision = Store(load_settings()).upgrade()
    out.print(f"the database has schema {revision}")


# --- edges -------------------------------------------------------------------------------------------------------


def _json(value: object) -> str:
    import json

    return json.dumps(value)


def _list(columns: list[str], rows: list[list[Any]], as_json: bool) -> None:
    if as_json:
        typer.echo(_json([dict(zip(columns, row, strict=True)) for row in rows]))
    elif rows:
        show_table(columns, rows)
    else:
        out.print("none")


def main() -> None:
    """Run the command line; errors become one sentence on stderr and an exit status."""
    signal.signal(signal.SIGTERM, _stop)
    try:
        app()
    except MedflowError as error:
        say_error(error)
        sys.exit(COULD_NOT_RUN)


def _stop(number: int, _frame: FrameType | None) -> NoReturn:
    """Asked to stop (a service manager, a container): leave through every `finally`, so that leases are given back."""
    sys.exit(128 + number)
