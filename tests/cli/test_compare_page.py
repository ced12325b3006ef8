"""What docs/compare.md and docs/tasks.md say can be typed, and what they print runs."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml
from support import PROJECT

from pipelines.cli import arguments
from pipelines.cli.main import parser
from pipelines.report import gate

PAGE = (PROJECT / "docs" / "compare.md").read_text()
LINES = re.findall(r"^    (ropewalk (?:compare|gate|results) .*)$", PAGE, re.M)


@pytest.mark.parametrize("line", LINES)
def test_every_command_of_the_page_is_one(line):
    _, *words = shlex.split(line.partition(" > ")[0], comments=True)
    options, extra = parser().parse_known_args(words)
    assert not [word for word in extra if word.startswith("-")], extra
    options.words += extra
    _, rest = arguments.own_keys(options)
    assert not [word for word in rest if "=" in word], rest


def test_the_page_has_the_policy_that_a_test_runs():
    [shown] = re.findall(r"^    strategy: yarn\n(?:    .*\n)+", PAGE, re.M)
    policy = yaml.safe_load((PROJECT / "docs" / "policy.yaml").read_text())
    assert {str(rule) for rule in yaml.safe_load(shown)["rules"]} < {str(rule) for rule in policy["rules"]}
    assert gate.read(PROJECT / "docs" / "policy.yaml")


def test_the_rules_of_the_gates_help_can_be_read(tmp_path):
    from pipelines.cli import gate as verb

    rules = re.findall(r"^    - (?:(\{.*\})|(\S+ [<>]=? \S+(?: with 95 %)?))", verb.DESCRIPTION, re.M)
    assert len(rules) == 6
    (tmp_path / "p.yaml").write_text("rules:\n" + "".join(f"- {mapping or line}\n" for mapping, line in rules))
    assert len(gate.read(tmp_path / "p.yaml")) == 6


def test_a_file_is_quantised_anew_as_the_page_does_it(tmp_path, monkeypatch):
    import gguf
    import numpy as np

    monkeypatch.chdir(tmp_path)
    writer = gguf.GGUFWriter("model.gguf", "llama")
    writer.add_context_length(64)
    values = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    writer.add_tensor("blk.0.attn_q.weight", values)
    writer.add_tensor("output_norm.weight", values[0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    [code] = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    exec(compile(code, "compare.md", "exec"), {})
    reader = gguf.GGUFReader("model-Q8_0.gguf")
    matrix, norm = reader.tensors
    assert matrix.tensor_type.name == "Q8_0" and norm.tensor_type.name == "F32"
    assert reader.fields["llama.context_length"].contents() == 64
    off = np.abs(gguf.dequantize(matrix.data, matrix.tensor_type) - values).max()
    assert 0 < off < np.abs(values).max() / 127


def test_the_task_of_the_page_is_read_as_it_stands(tmp_path):
    from pipelines.tasks import files

    [body] = re.findall(r"^```yaml\n(# mine.*?)^```", (PROJECT / "docs" / "tasks.md").read_text(), re.M | re.S)
    (tmp_path / "mine.yaml").write_text(body)
    (tmp_path / "capitals.jsonl").write_text('{"country": "France", "choices": ["Paris", "Rome"], "right": 0}\n')
    assert files.read(tmp_path / "mine.yaml").name == "capitals"
