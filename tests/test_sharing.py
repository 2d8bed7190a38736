"""What DVC promises a team, on a pipeline shaped like ours and a real S3 server: pull, and nothing runs again."""

import hashlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import boto3
import pytest
from moto.server import ThreadedMotoServer

PARAMS = """
networks: [small, large]
epsilon: 0.001
folder: weights
"""
# Every command tells a log outside the repository that it ran.
PIPELINE = """
stages:
  train:
    cmd: echo train >> $RAN && mkdir -p weights && echo w > weights/a && echo v > weights/b
    deps: [train.txt]
    outs: [weights]
  perturb:
    matrix: {network: "${networks}"}
    cmd: echo ${item.network} >> $RAN && mkdir -p cells && echo ${epsilon} > cells/${item.network}.csv
    deps: [weights]
    params: [epsilon]
    outs: ["cells/${item.network}.csv"]
  table:
    cmd: echo table >> $RAN && (echo n,e; echo 1,$(cat cells/small.csv)) > table.csv && echo '{"e":${epsilon}}' > m.json
    deps: [cells]
    params: [networks, epsilon]
    metrics: [m.json: {cache: false}]
    plots: [table.csv: {cache: false, x: n, y: e}]
artifacts:
  explained: {path: "${folder}/a", type: model}
"""

DVC = "import sys; from dvc.cli import main; sys.exit(any(main(line.split()) for line in sys.argv[1:]))"


class Repository:
    def __init__(self, folder, environment):
        self.folder, self.environment = folder, environment

    def run(self, *command, fails=False):
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        assert (done.returncode != 0) == fails, done.stdout + done.stderr
        return done.stdout + done.stderr

    def dvc(self, *lines, fails=False):
        """Run dvc commands in one process, for DVC is slow to start; stops at the first that fails."""
        return self.run(sys.executable, "-c", DVC, *lines, fails=fails)

    def commit(self):
        self.run("git", "add", ".")
        self.run("git", "commit", "-qm", "state")

    def clone(self, folder):
        self.run("git", "clone", "-q", ".", str(folder))
        return Repository(folder, self.environment)


@pytest.fixture(scope="module")
def server():
    moto = ThreadedMotoServer("127.0.0.1", port=0)
    moto.start()
    host, port = moto.get_host_and_port()
    yield f"http://{host}:{port}"
    moto.stop()


@pytest.fixture(scope="module")
def shared(server, tmp_path_factory):
    """A reproduced, committed and pushed pipeline; its bucket; and the log of the commands that ran."""
    folder = tmp_path_factory.mktemp("sharing")
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    person = {f"GIT_{role}_{what}": "a@b" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    log = folder / "log"
    own = {"DVC_NO_ANALYTICS": "1", "RAN": str(log), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    s3 = boto3.client(
        "s3", endpoint_url=server, aws_access_key_id="key", aws_secret_access_key="secret", region_name="us-east-1"
    )
    s3.create_bucket(Bucket="team")
    (folder / "mine").mkdir()
    mine = Repository(folder / "mine", os.environ | keys | person | own)
    files = {"params.yaml": PARAMS, "dvc.yaml": PIPELINE, "train.txt": "t", ".gitignore": "/cells/\n"}
    for name, text in files.items():
        (mine.folder / name).write_text(text)
    mine.run("git", "init", "-q")
    mine.dvc(
        "init -q",
        "remote add -d team s3://team/dvc",
        f"remote modify team endpointurl {server}",
        "remote modify team verify true",
        "repro",
        "push --run-cache",
    )
    mine.commit()
    return SimpleNamespace(mine=mine, log=log, s3=s3, folder=folder)


def test_clone_pulls_everything_and_runs_nothing(shared):
    before = shared.log.read_text()
    assert sorted(before.split()) == ["large", "small", "table", "train"]
    theirs = shared.mine.clone(shared.folder / "theirs")
    told = theirs.dvc("pull --run-cache", "repro", "status")
    assert shared.log.read_text() == before
    assert "Running stage" not in told
    assert told.count("Data and pipelines are up to date.") == 2
    assert theirs.run("git", "status", "--porcelain") == ""
    for file in ("weights/b", "cells/large.csv", "table.csv", "m.json"):
        assert (theirs.folder / file).read_bytes() == (shared.mine.folder / file).read_bytes()


@pytest.mark.parametrize("body", [b"x\n", b"w"], ids=["damaged", "truncated"])
def test_damaged_object_on_the_remote_is_never_taken(shared, body):
    """With `verify true`; without it DVC would put the damaged weights in place and exit with 0."""
    good = (shared.mine.folder / "weights" / "a").read_bytes()
    md5 = hashlib.md5(good).hexdigest()
    key = f"dvc/files/md5/{md5[:2]}/{md5[2:]}"
    shared.s3.put_object(Bucket="team", Key=key, Body=body)
    try:
        theirs = shared.mine.clone(shared.folder / f"damaged_{len(body)}")
        assert "ERROR: failed to pull data" in theirs.dvc("pull", fails=True)
        assert not (theirs.folder / "weights" / "a").exists()
        assert not (theirs.folder / ".dvc" / "cache" / "files" / "md5" / md5[:2] / md5[2:]).exists()
    finally:
        shared.s3.put_object(Bucket="team", Key=key, Body=good)


def test_earlier_parameter_is_restored_without_running(shared):
    mine, params = shared.mine, shared.mine.folder / "params.yaml"
    params.write_text(PARAMS.replace("0.001", "0.003"))
    mine.dvc("repro")
    assert (mine.folder / "m.json").read_text() == '{"e":0.003}\n'
    before = shared.log.read_text()
    params.write_text(PARAMS)
    assert mine.dvc("repro").count("is cached - skipping run") == 3
    assert shared.log.read_text() == before
    assert mine.run("git", "status", "--porcelain") == ""
    assert (mine.folder / "m.json").read_text() == '{"e":0.001}\n'
    assert (mine.folder / "cells" / "large.csv").read_text() == "0.001\n"


def test_artifact_is_fetched_by_its_tag_without_a_clone(shared):
    mine, elsewhere = shared.mine, Repository(shared.folder, shared.mine.environment)
    mine.run("git", "tag", "-a", "explained@v1.0.0", "-m", "first")
    elsewhere.dvc(f"artifacts get {mine.folder} explained --rev v1.0.0 --out fetched")
    assert (shared.folder / "fetched").read_bytes() == (mine.folder / "weights" / "a").read_bytes()
    told = elsewhere.dvc(f"artifacts get {mine.folder} explained --rev v2.0.0 --out second", fails=True)
    assert "Unable to find artifact" in told
    assert not (shared.folder / "second").exists()


def test_recipe_of_the_documentation_works_as_written(shared, server):
    """Its lines are run, but for the environment's making and for `make verify`, which is of the real pipeline."""
    text = (Path(__file__).parents[1] / "docs" / "pipeline.md").read_text()
    recipe = re.search(r"dvc remote add --default.*?(?=```)", text, re.DOTALL)[0].replace("BUCKET", "recipe")
    shared.s3.create_bucket(Bucket="recipe")
    environment = shared.mine.environment | {"AWS_ENDPOINT_URL": server}
    folder = shared.folder / "recipe"
    shared.mine.clone(folder)
    at, before = Repository(folder, environment), shared.log.read_text()
    at.dvc("pull --run-cache", "remote remove team")
    ran = []
    for line in recipe.splitlines():
        if line.startswith("# elsewhere"):
            at = at.clone(shared.folder / "recipe_elsewhere")
        for part in line.split("&&"):
            words = shlex.split(part, comments=True)
            if words[:1] == ["dvc"]:
                ran.append((words[1], at.dvc(" ".join(words[1:]))))
            elif words[:1] == ["git"]:
                at.run(*words)
    assert [name for name, _told in ran] == ["remote", "remote", "push", "pull", "repro"]
    assert "Running stage" not in ran[-1][1]
    assert shared.log.read_text() == before
    assert (at.folder / "weights" / "b").read_text() == "v\n"
