"""`understudy data prepare` and `inspect`, run: what they write, how they end, and that a model speaks its tokens."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.worker.data.corpora import SAYINGS, tokenizer_json
from tests.waiting import wait_until
from worker.data.corpus import open_corpus
from worker.data.prepare import share_of
from worker.data.tokenizer import FileTokenizer
from worker.offline import data_commands

PROGRAM = [sys.executable, "-m", "orchestrator.cli.main"]


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """A thousand documents of a few sentences."""
    path = tmp_path / "texts.jsonl"
    texts = [" ".join(SAYINGS[(n * k) % 3] for k in range(1, n % 7 + 2)) + f" {n}" for n in range(1000)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    path = tmp_path / "small" / "tokenizer.json"
    path.parent.mkdir()
    path.write_bytes(tokenizer_json())
    return path


def prepared(capfd: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert data_commands.main(["data", "prepare", *arguments, "-o", "json"]) == 0, capfd.readouterr()
    return json.loads(capfd.readouterr().out)


def test_any_number_of_processes_writes_the_same(
    lines: Path,
    tokenizer: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("worker.data.prepare.BATCH_BYTES", 5000)
    files = []
    for processes in ("1", "3"):
        out = tmp_path / f"out-{processes}"
        made = prepared(
            capfd, str(lines), str(out), "--tokenizer", str(tokenizer), "--processes", processes,
            "--validation-share", "0.1",
        )  # fmt: skip
        assert {name: Path(each["path"]).name for name, each in made.items()} == {
            "train.tokens": "train.tokens",
            "validation.tokens": "validation.tokens",
        }
        files.append([(out / name).read_bytes() for name in made])
    assert files[0] == files[1]


def test_documents_are_encoded_whole_and_shared_out_by_their_bytes(
    lines: Path, tokenizer: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    prepared(
        capfd, str(lines), str(tmp_path / "out"), "--tokenizer", str(tokenizer), "--validation-share", "0.2"
    )
    texts = [json.loads(line)["text"].encode() for line in lines.read_text().splitlines()]
    bpe = FileTokenizer(tokenizer_json(), name="small")
    for name, held in (("train.tokens", False), ("validation.tokens", True)):
        expected = bpe.encode([text for text in texts if (share_of(text) < 0.2) is held])
        corpus = open_corpus(str(tmp_path / "out" / name))
        assert corpus.read(0, corpus.tokens).tolist() == [
            token for each in expected for token in each.tolist()
        ]
        assert len(corpus.starts) == len(expected) > 100
        assert corpus.vocabulary.tokenizer == tokenizer_json()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["{lines}", "{out}", "--tokenizer", "nothing.json"], "error: tokenizer nothing.json: No such file"),
        (["{lines}", "{out}", "--text-field", "body"], "no text in 'body' (it has: text)"),
        (["nowhere/*.txt", "{out}"], "SRC is 'nowhere/*.txt': no file is there"),
        (["{lines}", "{out}", "--validation-share", "1"], "--validation-share is 1"),
        (["{lines}", "{lines}"], "it is no folder"),
    ],
)
def test_what_cannot_be_done_leaves_nothing(
    arguments: list[str], message: str, lines: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = [each.format(lines=lines, out=tmp_path / "out") for each in arguments]
    assert data_commands.main(["data", "prepare", *given]) == 2
    out, err = capfd.readouterr()
    assert out == "" and message in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten(lines: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    prepared(capfd, str(lines), str(tmp_path / "out"))
    assert data_commands.main(["data", "prepare", str(lines), str(tmp_path / "out")]) == 2
    assert "it holds train.tokens already" in capfd.readouterr().err


def test_ctrl_c_leaves_nothing_and_says_so(tokenizer: Path, tmp_path: Path) -> None:
    """The source is a pipe that stays open, so the command is in the middle of its work for certain."""
    out, source = tmp_path / "out", tmp_path / "endless.jsonl"
    os.mkfifo(source)
    command = [
        *PROGRAM,
        "data",
        "prepare",
        str(source),
        str(out),
        "--tokenizer",
        str(tokenizer),
        "--processes",
        "2",
    ]
    # A session of its own: Ctrl-C reaches all processes of a terminal's foreground group.
    with (
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as running,
        source.open("w") as pipe,
    ):
        for _ in range(3):
            pipe.write(json.dumps({"text": "a fox " * 200_000}) + "\n")
        pipe.flush()
        wait_until((out / "train.tokens.partial").exists, within_seconds=60.0, what="the command is at work")
        os.killpg(running.pid, signal.SIGINT)
        _, err = running.communicate(timeout=60)
    assert running.returncode == 130 and "interrupted: nothing was left behind\n" in err
    assert not out.exists()


def test_inspect_tells_what_a_file_holds(
    lines: Path, tokenizer: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    made = prepared(capfd, str(lines), str(out), "--tokenizer", str(tokenizer))["train.tokens"]
    assert (
        data_commands.main(["data", "inspect", str(out), "--verify", "-o", "json", "--sequence-length", "16"])
        == 0
    )
    found = json.loads(capfd.readouterr().out)
    assert (found["tokens"], found["documents"], found["vocabulary"]) == (
        made["tokens"],
        1000,
        made["vocabulary"],
    )
    assert found["samples_per_epoch"] == (made["tokens"] - 1) // 16 and found["verified"] is True
    texts = [json.loads(line)["text"] for line in lines.read_text().splitlines()]
    whole = "<|endoftext|>".join(texts)
    assert len(found["first_samples"]) == 3
    assert all(sample["text"].strip("\ufffd") in whole for sample in found["first_samples"])
    content = bytearray((out / "train.tokens").read_bytes())
    content[5000] ^= 1
    (out / "train.tokens").write_bytes(content)
    assert data_commands.main(["data", "inspect", str(out), "--windows", "0", "--verify"]) == 1
    assert "train.tokens is damaged in the" in capfd.readouterr().err


def test_understudy_hands_a_job_s_data_on(lines: Path, tokenizer: Path, tmp_path: Path) -> None:
    """The installed program: a job file with a mixture, whose vocabulary comes from its token files."""
    for name in ("one", "two"):
        command = [
            *PROGRAM,
            "data",
            "prepare",
            str(lines),
            str(tmp_path / name),
            "--tokenizer",
            str(tokenizer),
        ]
        subprocess.run(command, check=True, capture_output=True)
    job = tmp_path / "job.yaml"
    job.write_text(
        "name: mixed\nsteps: 10\n"
        "data:\n  documents: apart\n  sources:\n"
        "    - {name: one, path: one, weight: 0.75}\n    - {name: two, path: two, weight: 0.25}\n"
        "validation: {share: 0.05, windows: 8}\n"
    )
    done = subprocess.run(
        [*PROGRAM, "data", "inspect", str(job), "-o", "json"], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    assert [(each["name"], each["share"], each["samples"]) for each in found["sources"]] == [
        ("one", 0.75, 180),
        ("two", 0.25, 60),
    ]
    assert found["held_out_windows"] == 8 and found["vocabulary"] == 300
    changed = [
        *PROGRAM,
        "data",
        "inspect",
        str(job),
        "--set",
        "steps=5",
        "--set=batch.microbatches=8",
        "-o",
        "json",
    ]
    found = json.loads(subprocess.run(changed, capture_output=True, text=True, check=True).stdout)
    assert [each["samples"] for each in found["sources"]] == [60, 20]
    wrong = [*PROGRAM, "data", "inspect", str(tmp_path / "one"), "--set", "steps=5"]
    done = subprocess.run(wrong, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--set is 'steps=5'" in done.stderr
    helped = subprocess.run(
        [*PROGRAM, "data", "prepare", "--help"], capture_output=True, text=True, check=True
    )
    assert helped.stdout.startswith("usage: understudy data prepare")
