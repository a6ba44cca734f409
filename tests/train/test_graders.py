"""Grading: each kind of grader on answers, and Python that wants harm."""

from __future__ import annotations

import http.server
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from ryorin.errors import InvalidInput, RequirementMissing
from ryorin.graders import read_grader
from ryorin_index import sandbox
from ryorin_train.graders.grading import Grading, Mark, Sample, check_item
from ryorin_train.graders.similarity import similarity, words

ANSWER = "{{sample.output_text}}"


@pytest.fixture(scope="module", autouse=True)
def sandbox_ends() -> Iterator[None]:
    yield
    sandbox.shut_down()


def mark(grader: dict[str, Any], text: str, **item: Any) -> Mark:
    (found,) = Grading(read_grader(grader)).grade([Sample(item, text)])
    return found


def check(operation: str) -> dict[str, Any]:
    return {"type": "string_check", "name": "c", "input": ANSWER, "reference": "{{item.a}}", "operation": operation}


@pytest.mark.parametrize(
    ("operation", "text", "grade"),
    [
        ("eq", "Yes", 1),
        ("eq", "yes", 0),
        ("ne", "yes", 1),
        ("ne", "Yes", 0),
        ("like", "oh Yes!", 1),
        ("like", "yes", 0),
        ("ilike", "oh yes", 1),
        ("ilike", "no", 0),
    ],
)
def test_string_check(operation: str, text: str, grade: float) -> None:
    assert mark(check(operation), text, a="Yes").grade == grade


def test_a_missing_value_is_a_failure_not_a_crash() -> None:
    found = mark(check("ne"), "x")
    assert (found.grade, found.failures) == (0.0, {"c": "there is no item.a"})
    with pytest.raises(ValueError, match=r"there is no item\.a, which the grader asks for"):
        check_item(read_grader(check("eq")), {"b": 1})
    check_item(read_grader(check("eq")), {"a": 1})


def test_similarity_is_that_of_known_libraries() -> None:
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from nltk.translate.gleu_score import sentence_gleu

    reference = "the cat is on the mat and looks at the dog"
    for text in ("the cat is on the mat", "a dog looks at the cat on the mat and at the dog", "on the mat", reference):
        ours, theirs = words(text), words(reference)
        smoothed = SmoothingFunction().method2
        bleu = sentence_bleu([theirs], ours, smoothing_function=smoothed)
        assert similarity("bleu", text, reference) == pytest.approx(bleu, rel=1e-9), text
        assert similarity("gleu", text, reference) == pytest.approx(sentence_gleu([theirs], ours), rel=1e-9)
    assert similarity("fuzzy_match", "this is a test", "this is a test!") == pytest.approx(0.965517, abs=1e-6)
    assert similarity("rouge_1", "the cat sat", "the cat ran off") == pytest.approx(2 * 2 / 7)
    assert similarity("rouge_2", "the cat sat", "the cat ran off") == pytest.approx(2 * 1 / 5)
    assert similarity("rouge_l", "a x b y c", "a b c") == pytest.approx(2 * 3 / 8)
    assert similarity("rouge_1", "出張の旅費", "出張の費用") == pytest.approx(0.8)
    for metric in ("fuzzy_match", "bleu", "gleu", "rouge_1", "rouge_5", "rouge_l"):
        assert similarity(metric, "", "") == 1.0 and similarity(metric, "a", "") == 0.0
        assert 0.0 <= similarity(metric, "a b", "a b") <= 1.0


def test_json_schema_and_regex() -> None:
    schema = {"type": "object", "required": ["d"], "properties": {"d": {"enum": ["A", "B"]}}}
    grader = {"type": "json_schema", "name": "j", "schema": schema}
    texts = ['{"d": "A"}', '{"d": "C"}', 'Sure: {"d": "A"}', '{"d": NaN}', "[" * 100_000]
    assert [mark(grader, text).grade for text in texts] == [1, 0, 0, 0, 0]
    full = {"type": "regex", "name": "r", "pattern": r"\d+"}
    assert [mark(full, text).grade for text in ("12", "a 12")] == [1, 0]
    assert mark(full | {"match": "search"}, "a 12").grade == 1
    slow = mark({"type": "regex", "name": "r", "pattern": r"(\w|\w\w)*\W"}, "ab" * 40)
    assert slow.grade == 0 and "took more than" in slow.failures["r"]


def test_a_formula_over_graders() -> None:
    multi = {
        "type": "multi",
        "name": "m",
        "graders": {"same": check("eq"), "long": {"type": "regex", "name": "x", "pattern": ".{3,}"}},
        "calculate_output": "0.75 * same + 0.25 * long",
    }
    found = mark(multi, "Yes", a="Yes")
    assert (found.grade, found.parts, found.failures) == (1.0, {"same": 1.0, "long": 1.0}, {})
    partly = mark(multi, "Yes")
    assert (partly.grade, partly.failures) == (0.25, {"same": "there is no item.a"})
    divided = mark(multi | {"calculate_output": "same / (long - 1)"}, "Yes", a="Yes")
    assert divided.grade == 0.0 and "calculate_output" in divided.failures["m"]
    assert mark(multi | {"calculate_output": "9 * same + long"}, "Yes", a="Yes").grade == 1.0  # clipped
    assert mark(multi | {"calculate_output": "9 * same + long", "range": [-1, 20]}, "Yes", a="Yes").grade == 10.0


def python(source: str, **more: Any) -> dict[str, Any]:
    return {"type": "python", "name": "p", "source": source, **more}


def test_python_grades_confined() -> None:
    source = (
        "import json\ndef grade(sample, item):\n    return 1.0 if sample['output_json']['n'] == item['n'] else 0.25"
    )
    assert [mark(python(source), text, n=3).grade for text in ('{"n": 3}', '{"n": 4}')] == [1.0, 0.25]
    failed = mark(python(source), "no", n=3)
    assert failed.grade == 0.0 and "TypeError" in failed.failures["p"]
    assert mark(python("def grade(s, i): return 7"), "").grade == 1.0
    assert mark(python("def grade(s, i): return 7", range=[-2, 2]), "").grade == 2.0


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return float('nan')", "the grade is nan"),
        ("return float('inf')", "the grade is inf"),
        ("return 'much'", "returned str, not a number"),
        ("return item", "returned dict, not a number"),
        ("raise SystemExit", "crashed or ended itself"),
        ("while True: pass", "2 s of computing"),
        ("import time; time.sleep(60)", "took more than 5 s"),
        ("return len(bytearray(1 << 40))", "256 MB"),
        ("x = []\n    while True: x.append(bytes(1 << 20))", "256 MB"),
        ("import socket; socket.create_connection(('127.0.0.1', 80))", "PermissionError"),
        ("open('/etc/passwd').read()", "PermissionError"),
        ("import subprocess; subprocess.run(['true'])", "PermissionError"),
        ("import os\n    while True: os.fork()", "PermissionError"),
        ("import threading; t = threading.Thread(target=print); t.start(); t.join()", "can't start new thread"),
        ("def f(): return f()\n    return f()", "RecursionError"),
        ("return 10 ** 10 ** 10", "2 s of computing|256 MB"),
        ("import os\n    while True:\n        for f in range(3, 64):\n            try: os.write(f, b'x' * 65536)\n"
         "            except OSError: pass", "KB back"),
        ("import ctypes; ctypes.string_at(0)", "crashed"),
    ],
)  # fmt: skip
def test_python_that_wants_harm_only_harms_its_grade(body: str, reason: str) -> None:
    began = time.monotonic()
    found = mark(python(f"def grade(sample, item):\n    {body}"), "x")
    assert found.grade == 0.0
    assert pytest.importorskip("re").search(reason, found.failures["p"]), found.failures
    assert time.monotonic() - began < 60
    assert mark(python("def grade(s, i): return 1"), "x").grade == 1.0  # the next answer is graded as ever


PAST_PYTHON = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def grade(sample, item):
    victim, path = item["victim"], item["path"].encode()
    reached = [
        libc.socket(2, 1, 0), libc.open(path, 65, 0o600), libc.open(b"/etc/passwd", 0), libc.fork(),
        libc.kill(victim, 9),
        libc.execv(b"/bin/true", (ctypes.c_char_p * 2)(b"true", None)), libc.unlink(item["kept"].encode()),
        libc.setpriority(0, victim, 19), libc.syscall(310, victim, 0, 0, 0, 0, 0), libc.ptrace(16, victim, 0, 0),
    ]
    info = (ctypes.c_int * 32)(9, 0, -1)
    if os.uname().machine == "x86_64":
        reached.append(libc.syscall(129, victim, 9, info))  # rt_sigqueueinfo
        for command in (8, 10, 15):  # F_SETOWN, F_SETSIG, F_SETOWN_EX
            reached.append(libc.syscall(72, 0, command, victim))
    return float(sum(each != -1 for each in reached))
"""


def test_code_that_goes_past_python_reaches_nothing(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("here")
    import subprocess

    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as victim:
        item = {"victim": victim.pid, "path": str(tmp_path / "made"), "kept": str(kept)}
        found = mark(python(PAST_PYTHON, range=[0, 100]), "x", **item)
        assert (found.grade, found.failures) == (0.0, {})
        assert victim.poll() is None and os.getpriority(os.PRIO_PROCESS, victim.pid) < 19
        victim.communicate(b"\n")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_python_is_refused_where_it_cannot_be_confined(monkeypatch: pytest.MonkeyPatch) -> None:
    from ryorin_index.sandbox import code

    monkeypatch.setattr(code, "call", lambda *_: [{"lacking": "landlock"}])
    with pytest.raises(RequirementMissing, match="has no landlock"):
        mark(python("def grade(s, i): return 1"), "x")


class Judge(http.server.BaseHTTPRequestHandler):
    asked: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.asked.append(body)
        text = body["messages"][-1]["content"]
        reply = '{"result": 7.5}' if text == "good" else "0.25" if text == "meh" else "I like it"
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": reply}}
        data = json.dumps({"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]})
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(data.encode())

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def judge() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_model_grades(judge: str, monkeypatch: pytest.MonkeyPatch) -> None:
    grader = {
        "type": "score_model",
        "name": "s",
        "model": "judge",
        "input": [{"role": "system", "content": "Score."}, {"role": "user", "content": ANSWER}],
        "range": [0, 10],
        "sampling_params": {"temperature": 0, "max_completions_tokens": 9},
    }
    with pytest.raises(InvalidInput, match="may not be asked"):
        mark(grader, "good")
    monkeypatch.setenv("RYORIN_GRADER_MODELS", "other, judge")
    monkeypatch.setenv("RYORIN_GRADER_URL", judge)
    marks = Grading(read_grader(grader)).grade([Sample({}, text) for text in ("good", "meh", "bad")])
    assert [each.grade for each in marks] == [7.5, 0.25, 0.0]
    assert "has no score" in marks[2].failures["s"]
    body = Judge.asked[-1]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("judge", 0, 9)
