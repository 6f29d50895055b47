"""`medflow show` as people meet it: the file it writes, and what it says when it cannot."""

import os
import sys
import time

import pytest
from PIL import Image

from tests.distributions import environment, medflow, write_distribution

GC = "from tests import models\n\nclass GcContent(models.GcContent):\n    pass\n"


@pytest.fixture(scope="module")
def env(tmp_path_factory):
    """An installation with one sequence that was scored and one that could not be."""
    root = tmp_path_factory.mktemp("show")
    plugins = write_distribution(root / "plugins", "gc-plugin", GC, {"gc-content": "GcContent"})
    env = environment(root / "home", plugins)
    (root / "in.fasta").write_text(">one\nACGTACGT\n>two\nNCGTACGT\n")
    medflow(env, "ingest", "fasta", root / "in.fasta")
    medflow(env, "score", "--model", "gc-content")
    return env


def test_it_writes_a_picture_and_says_what_the_model_said(env, tmp_path):
    done = medflow(env, "show", 1, "--to", tmp_path / "case.png")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("sequence/1 · gc-content 1.0.0: gc 0.5 1\n")
    assert Image.open(tmp_path / "case.png").format == "PNG"


def test_a_case_that_was_refused_is_shown_without_a_score(env, tmp_path):
    done = medflow(env, "show", 2, "--to", tmp_path / "case.png")

    assert done.returncode == 0
    assert "sequence/2 · gc-content 1.0.0: not scored: dead" in done.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((99, "--to", "x.png"), "there is no job 99"),
        ((1, "--to", "x.jpg"), "give it a name that ends with .png"),
        ((1, "--to", "/no/such/folder/x.png"), "x.png cannot be written (No such file or directory)"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(env, words, said):
    done = medflow(env, "show", *words)

    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere other programs open pictures")
def test_it_opens_the_picture_in_whatever_shows_pictures_here(env, tmp_path):
    program, told = tmp_path / "bin" / "xdg-open", tmp_path / "told"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$1" > {told}.part && mv {told}.part {told}\n')
    program.chmod(0o755)
    path = {"PATH": os.pathsep.join([str(program.parent), os.environ["PATH"]])}

    done = medflow({**env, **path}, "show", 1, "--to", tmp_path / "case.png", "--open")

    assert done.returncode == 0, done.stderr
    for _ in range(100):  # it is not waited for
        if told.exists():
            break
        time.sleep(0.1)
    assert told.read_text().strip() == str(tmp_path / "case.png")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere other programs open pictures")
def test_where_nothing_shows_pictures_the_file_is_there_all_the_same(env, tmp_path):
    done = medflow({**env, "PATH": str(tmp_path)}, "show", 1, "--to", tmp_path / "case.png", "--open")

    assert done.returncode == 1
    assert "nothing here opens pictures" in done.stderr
    assert Image.open(tmp_path / "case.png").format == "PNG"
