"""What came from outside is read within limits, and refused in a sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from components.shared.contracts import decode, encode
from components.shared.parsing import json_documents, yaml_documents
from components.shared.parsing.json_documents import parse_json, read_json
from components.shared.parsing.yaml_documents import parse_yaml, read_yaml

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(9)
)
"""Some 500 bytes that stand for nine to the tenth values."""
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LAUGHS, "it has more than 20,000 values with its aliases expanded"),
        (MERGES, "it has more than 20,000 values with its aliases expanded"),
        ("&a [*a]", "it has more than 20,000 values with its aliases expanded"),
        ("a: &a 1\nb: [" + "*a, " * 101 + "1]", "it has more than 100 aliases"),
        ("[" * 40_000, "it has more than 32 levels of nesting"),
        ("- " * 33 + "x", "it has more than 32 levels of nesting"),
        ("? " * 33 + "x", "it has more than 32 levels of nesting"),
        ("[" + "1," * 25_000 + "]", "it has more than 20,000 values"),
        ("#" * 200_000, "it has more than 131,072 characters"),
        ("a: 1\na: 2", "'a' occurs more than once"),
        ("a: 1\n'a': 2", "'a' occurs more than once"),
        ("x: {b: 1, b: 1}", "'b' occurs more than once"),
        ("9" * 5000, "a value does not match its type"),
        ("!!bool x", "a value does not match its type"),
        ("!!int ''", "a value does not match its type"),
        ("2026-99-99", "a value does not match its type"),
        ("!!python/object/apply:os.system [x]", "could not determine a constructor"),
        ("a: b: c", "mapping values are not allowed here"),
    ],
)
def test_yaml_is_refused_in_words(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(yaml.YAMLError, match=words):
        parse_yaml(text)
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"policy\.yaml is (not valid YAML|larger than 128 KiB)"):
        read_yaml(file)


def test_yaml_that_people_write_is_read() -> None:
    text = "a: &a {x: 1, y: [2, 3]}\nb: {<<: *a, x: 5}\nc: 1:30\nd: [*a, *a]\n"
    a = {"x": 1, "y": [2, 3]}
    assert parse_yaml(text) == {"a": a, "b": {**a, "x": 5}, "c": "1:30", "d": [a, a]}
    assert parse_yaml("- " * 31 + "x") is not None
    assert parse_yaml("a: &a 1\nb: [" + "*a, " * 100 + "1]")["b"][0] == 1


def test_a_yaml_file_without_end_is_not_read_to_the_end() -> None:
    with pytest.raises(ValueError, match=r"/dev/zero is larger than 128 KiB, the maximum for a YAML file"):
        read_yaml(Path("/dev/zero"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "it has more than 64 levels of nesting"),
        ('{"a":' * 65 + "1" + "}" * 65, "it has more than 64 levels of nesting"),
        ('{"a": 1, "a": 2}', "the key 'a' occurs more than once"),
        ('{"x": [{"b": 1, "b": 1}]}', "the key 'b' occurs more than once"),
        ("9" * 5000, "Exceeds the limit"),
        ("[1,", "Expecting value"),
        (b"\x80", "codec can't decode"),
    ],
)
def test_json_is_refused_in_words(text: str | bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_json(text)
    with pytest.raises(ValueError, match=r"^report\.json is not valid JSON: .*\. Correct it, or create it again\.$"):
        read_json(text, "report.json")


def test_json_of_any_size_that_is_allowed_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"a": [{"b": 1}, None, "x"], "n": 1.5}
    assert parse_json(json.dumps(value)) == value
    assert parse_json("[" * 64 + "]" * 64)
    with pytest.raises(ValueError, match="it has 12 bytes; the maximum is 11"):
        parse_json("[1, 2, 3, 4]", 11)
    monkeypatch.setattr(json_documents, "MAX_BYTES", 8)
    assert yaml_documents.MAX_BYTES == 2**17


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"kind": "run", "schema": 1, "x": ' + b"[" * 20_000, "it has more than 64 levels of nesting"),
        (b'{"kind": "run", "schema": 1, "kind": "run"}', "the key 'kind' occurs more than once"),
        (b" " * (json_documents.MAX_BYTES + 1), "the maximum is"),
    ],
)
def test_a_record_that_is_nested_or_said_twice_is_refused_by_name(data: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=rf"^here is not a JSON run: .*{words}.* create it again\.$"):
        decode("run", data, "here")
    assert decode("run", encode("run", {"a": 1}), "here")["a"] == 1


COMMANDS = {
    "--params": ["plan", "--source", "/scans", "--params"],
    "--policy": ["plan", "--source", "/scans", "--policy"],
    "gate": ["gate", "--replay"],
    "cluster": [
        "compile",
        "retrain",
        "--no-pin",
        "--images",
        "r.example/m:1",
        "--output",
        "/tmp/never.yaml",
        "--cluster",
    ],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_billion_laughs_end_a_command_with_status_2_in_little_memory(command: str, tmp_path: Path) -> None:
    file = tmp_path / "laughs.yaml"
    file.write_text(LAUGHS)
    limited = "import resource; resource.setrlimit(resource.RLIMIT_DATA, (2**30, 2**30))"
    program = f"{limited}; import sys; from medloop.cli.main import main; sys.argv[0] = 'medloop'; main()"
    command_line = [sys.executable, "-c", program, *COMMANDS[command], str(file)]
    done = subprocess.run(command_line, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    assert "laughs.yaml is not valid YAML: it has more than 20,000 values" in done.stderr
    assert "Traceback" not in done.stderr
