"""`stages/compare.py` says which verdicts differ and which numbers moved, against a folder or a git revision."""

import json
import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cxlib.review.report import comparison
from cxlib.review.report.comparison import Moved, Verdict

COMPARE = Path(__file__).parents[1] / "stages" / "compare.py"
LEDGER = """statement,section,network,margin,mean,low,high,published,n_images,verdict
1,4.1,resnet18,p_t,0.5,0.4,0.6,0.55,48,holds
1,4.1,vgg16,p_t,0.1,-0.1,0.3,,48,not shown
2,4.2,resnet18,same,0,0,0,,48,identity
2,4.2,,,,,,,,
"""
CHANGES = """network,epsilon,n_iterations,kept_features,change,n_images,computed_by
resnet18,0.001,1,all,0.5,48,one
resnet18,0.001,3,0.05,10,48,one
resnet18,0.003,1,0.05,,48,one
"""
METRICS = {"claim_1": {"holds": True, "margin": {"low": 0.4, "mean": 0.5, "high": 0.6}}, "n_images": 48}


def write(root, ledger=LEDGER, changes=CHANGES, metrics=METRICS):
    for folder in ("plots", "plots/deeper", "metrics"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "plots" / "claims.csv").write_text(ledger)
    (root / "plots" / "changes.csv").write_text(changes)
    (root / "plots" / "deeper" / "points.csv").write_text("not,ours\n1")
    (root / "metrics" / "claims.json").write_text(json.dumps(metrics))
    return root


def review(ledger=LEDGER, metrics=METRICS, **tables):
    """In memory what `write` puts in a folder."""
    texts = {"claims": ledger, **tables}
    files = {f"plots/{name}.csv": pd.read_csv(StringIO(text)) for name, text in texts.items()}
    return files | {"metrics/claims.json": metrics}


def numbers(here, there, name="table"):
    result = comparison.compare(review(**{name: here}), review(**{name: there}))
    return next(file for file in result.files if file.name == f"plots/{name}.csv")


def git(*arguments, cwd):
    identity = ("-c", "user.name=one", "-c", "user.email=one@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *identity, *arguments], cwd=cwd, check=True, capture_output=True)


def run(root, *arguments):
    done = subprocess.run([sys.executable, COMPARE, *arguments], cwd=root, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A review in a sub-folder of a repository: another verdict in the first commit, other numbers in the second."""
    top = tmp_path_factory.mktemp("compare")
    git("init", "-q", cwd=top)
    root = write(top / "project", ledger=LEDGER.replace("48,holds", "48,refuted"))
    git("add", ".", cwd=top)
    git("commit", "-qm", "first", cwd=top)
    git("tag", "first", cwd=top)
    write(root, changes=CHANGES.replace("0.5,48", "0.7,48"))
    git("commit", "-qam", "second", cwd=top)
    return write(root)


def test_equal_folders_agree(repository, tmp_path):
    shutil.copytree(repository, tmp_path / "copy")
    code, out, err = run(repository, str(tmp_path / "copy"))
    assert (code, err) == (0, [])
    assert out[:-1] == [f"Tolerance: {comparison.TOLERANCE}"]
    # Of the ledger 13 numbers, of the table 5, of the metrics 4; one verdict in the metrics.
    assert out[-1] == (
        "4 verdicts agree, 0 differ; 22 numbers compared, 0 moved beyond their tolerance, 0 digits-only differences"
    )


def test_changed_verdict_of_a_revision_is_named(repository):
    code, out, _ = run(repository, "first")
    assert code == 1
    assert out[:2] == ["Verdicts that differ, here → there:", "  1, resnet18, p_t: holds → refuted"]
    assert out[-1].startswith("3 verdicts agree, 1 differs; 22 numbers compared, 0 moved")


def test_moved_number_alone_is_printed_and_passes(repository):
    code, out, _ = run(repository, "HEAD")
    assert code == 0
    assert out[:2] == [
        "plots/changes.csv: 1 of 5 numbers moved",
        "  resnet18, epsilon=0.001, n_iterations=1, all: change: 0.5 → 0.7 (allowed 0.014)",
    ]
    assert "22 numbers compared, 1 moved" in out[-1]


@pytest.mark.parametrize("other", ["no-such-revision", "HEAD:project", "--end"])
def test_neither_folder_nor_revision(repository, other):
    code, out, err = run(repository, "--", other)
    assert (code, out) == (2, [])
    assert err == [f"Error: {other} is neither a folder nor a revision of the repository in {repository}"]


def test_folder_outside_git_without_ledger_without_verdicts_or_damaged(tmp_path):
    write(tmp_path / "here")
    (tmp_path / "other").mkdir()
    assert run(tmp_path / "here", "../other") == (2, [], ["Error: ../other has no plots/claims.csv"])
    assert run(tmp_path / "here", "HEAD")[0] == 2
    write(tmp_path / "other", ledger="claim,network,margin\n1,a,b\n")
    lacks = "Error: plots/claims.csv of ../other holds no verdicts, it lacks: statement, verdict"
    assert run(tmp_path / "here", "../other") == (2, [], [lacks])
    write(tmp_path / "other", changes="")
    code, out, err = run(tmp_path / "here", "../other")
    assert (code, out, len(err)) == (2, [], 1)
    assert err[0].startswith("Error: plots/changes.csv of ../other is damaged")


def test_missing_rows_and_booleans_are_differing_verdicts():
    here = review(metrics={"claim_1": {"holds": True}, "claim_2": {"holds": False}})
    there = review(ledger=LEDGER.replace("1,4.1,vgg16", "1,4.1,vgg19"), metrics={"claim_1": {"holds": False}})
    result = comparison.compare(here, there)
    assert sorted(result.verdicts, key=lambda verdict: verdict.of) == [
        Verdict("1, vgg16, p_t", "not shown", None),
        Verdict("1, vgg19, p_t", None, "not shown"),
        Verdict("metrics/claims.json: claim_1.holds", "true", "false"),
        Verdict("metrics/claims.json: claim_2.holds", "false", None),
    ]
    assert result.agree == 2
    assert [(file.only_here, file.only_there) for file in result.files if file.name == comparison.LEDGER] == [(4, 4)]


def test_changed_verdict_does_not_part_the_numbers_of_its_row():
    result = comparison.compare(review(), review(ledger=LEDGER.replace("0.5,0.4", "0.53,0.4").replace("holds", "")))
    assert result.verdicts == [Verdict("1, resnet18, p_t", "holds", "")]
    # A quarter of half of 0.2 is allowed.
    file = next(file for file in result.files if file.name == comparison.LEDGER)
    assert (file.digits, file.moved) == (0, [Moved("1, resnet18, p_t: mean", 0.5, 0.53, pytest.approx(0.025))])


@pytest.mark.parametrize(
    ("column", "here", "there", "allowed"),
    [
        ("change", "0.6", "0.6121", None),  # 2 % are those of what is there
        ("change", "0.6121", "0.6", 0.012),
        ("change", "0.01", "0.02", None),
        ("change", "0.01", "0.0201", 0.01),
        ("change", "10", "10.2", None),
        ("change", "", "", None),
        ("change", "", "0.001", 0.01),
        ("change", "0.001", "", 0),
        ("change", "inf", "inf", None),
        ("change", "-inf", "1", 0.02),
        ("n_images", "48", "48.0", None),
        ("n_images", "48", "47", 0),
    ],
)
def test_tolerance_without_interval(column, here, there, allowed):
    table = "network,{}\na,{}\nb,1\n"
    file = numbers(table.format(column, here), table.format(column, there))
    assert [number.allowed for number in file.moved] == ([] if allowed is None else [pytest.approx(allowed)])
    equal = here == there or float(here or "nan") == float(there or "nan")
    assert file.digits == (allowed is None and not equal)
    assert file.compared == 2 - (here == there == "")


def test_intervals_belong_to_the_number_before_and_to_the_margin():
    header = "network,value,n_images,low,high,area,margin,margin_low,margin_high\n"
    there = header + "a,0.5,4,0.48,0.52,0.5,0.2,0.1,0.3\nb,0.5,4,,,0.5,,,\n"
    file = numbers(header + "a,0.506,4,0.487,0.52,0.506,0.22,0.1,0.33\nb,0.506,4,,,0.506,,,\n", there)
    assert {number.key: number.allowed for number in file.moved} == {
        "a: low": pytest.approx(0.005),
        "a: value": pytest.approx(0.005),
        "a: margin_high": pytest.approx(0.025),
    }
    assert file.moved[0].key == "a: low"  # the worst
    assert (file.digits, file.compared) == (4, 11)


def test_intervals_of_metrics():
    here, there = ({"claim": {"low": 0.0, "mean": mean, "high": 0.4}, "mean": mean} for mean in (0.206, 0.2))
    files = comparison.compare(review(metrics=here), review(metrics=there)).files
    assert (files[0].name, files[0].digits, files[0].moved) == ("metrics/claims.json", 2, [])
    there["claim"]["high"] = 0.02
    files = comparison.compare(review(metrics=here), review(metrics=there)).files
    assert {number.key for number in files[0].moved} == {"claim.high", "claim.mean"}


def test_rows_in_another_order_are_matched_by_their_key():
    lines = CHANGES.splitlines()
    # Without "all" the column kept_features holds numbers only: it is a key as long as it is one in either table.
    file = numbers("\n".join(lines), "\n".join([lines[0], *lines[:0:-1]]).replace(",one", ",two"))
    assert (file.compared, file.digits, file.moved, file.only_here, file.only_there) == (5, 0, [], 0, 0)
    file = numbers("\n".join(lines), "\n".join([lines[0], *lines[:1:-1]]))
    assert (file.compared, file.moved, file.only_here, file.only_there) == (3, [], 2, 0)


def test_rows_that_are_alike_are_matched_by_their_order():
    file = numbers("network,value\na,1\na,2\nb,3\n", "network,value\nb,3\na,1\na,5\n")
    assert [(number.key, number.here, number.there) for number in file.moved] == [("a #2: value", 2, 5)]
    assert [number.key for number in numbers("value\n1\n2\n", "value\n1\n5\n").moved] == ["#2: value"]


def test_tables_of_images_are_compared_by_their_means():
    header = "network,path,image,step,p_t\n"
    rows = [("a", "weighted", image, step, image / 10 + step) for image in range(4) for step in (1, 2)]
    here = header + "\n".join(",".join(map(str, row)) for row in rows)
    there = header + "\n".join(",".join(map(str, (*row[:2], 3 - row[2], *row[3:]))) for row in rows)
    assert (numbers(here, there).compared, numbers(here, there).moved) == (2, [])
    fewer = numbers(here, "\n".join(there.splitlines()[:-1]))
    assert [number.key for number in fewer.moved] == ["a, weighted: n_rows", "a, weighted: p_t"]
    assert np.mean([row[-1] for row in rows]) == pytest.approx(fewer.moved[1].here)


def test_a_file_and_a_number_that_only_one_has(repository, tmp_path):
    write(tmp_path, changes=CHANGES.replace("resnet18,0.003", "vgg16,0.003"))
    (tmp_path / "plots" / "new.csv").write_text("network,value\na,1\n")
    code, out, _ = run(repository, str(tmp_path))
    assert code == 0
    assert out[:2] == [
        "plots/changes.csv: 0 of 4 numbers moved, 1 only here, 1 only there",
        "Only there: plots/new.csv",
    ]


def test_everything_moved_is_still_short(tmp_path):
    for name, value in (("here", 0), ("there", 1)):
        root = write(tmp_path / name, ledger=LEDGER + "".join(f"3,,{i},m,,,,,,{value}\n" for i in range(50)))
        for i in range(30):
            table = pd.DataFrame({"epoch": range(9), "value": float(value)})
            table.to_csv(root / "plots" / f"{i}.csv", index=False)
    code, out, _ = run(tmp_path / "here", "../there")
    assert code == 1
    assert len(out) <= 60
    assert sum("9 of 9 numbers moved" in line for line in out) == 30
    assert "  … and 32 more" in out
    assert "4 verdicts agree, 50 differ; 292 numbers compared, 270 moved" in out[-1]
