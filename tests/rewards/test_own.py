"""A user's own function as a reward: it is loaded, called with all texts, and its numbers are checked."""

import math
import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imdb_rlhf.config.reward import OwnReward as OwnConfig
from imdb_rlhf.errors import ConfigError, RunError
from imdb_rlhf.rewards import CheckedReward
from imdb_rlhf.rewards.own import Kind, OwnReward, locate

GOOD = "def score(texts):\n    return [float(len(text)) for text in texts]\n"
CPU = torch.device("cpu")
TEXTS = ["a", "bb", "", "dddd"]


@pytest.fixture
def write(tmp_path):
    def put(source: str, name: str = "score") -> str:
        (tmp_path / "own.py").write_text(source)
        return f"{tmp_path / 'own.py'}:{name}"

    return put


def refused(call, *arguments) -> str:
    with pytest.raises(RunError) as caught:
        call(*arguments)
    return str(caught.value)


def test_the_numbers_are_on_both_scales(write):
    scores = OwnReward(write(GOOD)).score(TEXTS)
    assert scores.reward.tolist() == scores.logit.tolist() == [1.0, 2.0, 0.0, 4.0]
    assert scores.reward.dtype == scores.logit.dtype == np.float64


@pytest.mark.parametrize(
    "body",
    [
        "return [len(t) for t in texts]",
        "return tuple(len(t) for t in texts)",
        "import numpy\n    return numpy.array([len(t) for t in texts], dtype='float32')",
        "import numpy\n    return [numpy.float32(len(t)) for t in texts]",
    ],
)
def test_any_row_of_numbers_will_do(write, body):
    assert OwnReward(write(f"def score(texts):\n    {body}\n")).score(TEXTS).reward.tolist() == [1, 2, 0, 4]


def test_no_text_is_no_number(write):
    assert OwnReward(write(GOOD)).score([]).reward.shape == (0,)


def test_anything_that_can_be_called(write):
    source = "class Scorer:\n    def __call__(self, texts):\n        return [1.0] * len(texts)\nscorer = Scorer()\n"
    assert OwnReward(write(source, "scorer")).score(["a"]).reward.tolist() == [1.0]


def test_the_function_is_given_a_list_of_its_own(write):
    reward = OwnReward(write("def score(texts):\n    n = len(texts)\n    texts.clear()\n    return [0.0] * n\n"))
    texts = ("a", "b")
    reward.score(texts)
    assert texts == ("a", "b")


def test_two_files_of_one_name(tmp_path):
    rewards = []
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        file = tmp_path / str(number) / "own.py"
        file.write_text(f"def score(texts):\n    return [{number}.0] * len(texts)\n")
        rewards.append(OwnReward(f"{file}:score"))
    assert [reward.score(["a"]).reward[0] for reward in rewards] == [1.0, 2.0]


# --- what it depends on


def identity(function: str, files: list[str] | None = None) -> dict:
    return Kind(OwnConfig(name="own", function=function, files=files or [], range=[])).identity(None)


def test_a_helper_beside_the_file_is_importable_and_belongs_to_it(write, tmp_path):
    found = []
    for value in (1, 2, 1):
        (tmp_path / "my_helper.py").write_text(f"VALUE = {value}.0\n")
        function = write("def score(texts):\n    from my_helper import VALUE\n    return [VALUE] * len(texts)\n")
        found.append((identity(function), OwnReward(function).score(["a"]).reward[0]))
    assert [score for _, score in found] == [1.0, 2.0, 1.0]
    assert found[0] == found[2] and found[0][0] != found[1][0]


def test_a_file_that_it_reads_belongs_to_it_where_it_is_named(write, tmp_path):
    function, words = write(GOOD), tmp_path / "words"
    words.mkdir()
    (words / "good.txt").write_text("good")
    (tmp_path / "one.txt").write_text("one")
    files = [str(words), str(tmp_path / "one.txt")]
    before = identity(function, files)
    assert before == identity(function, files) != identity(function)
    (words / "good.txt").write_text("fine")
    assert identity(function, files) != before
    assert "files" not in identity(function) and "modules" not in identity(function)


def test_a_named_file_that_is_not_there(write, tmp_path):
    config = OwnConfig(name="own", function=write(GOOD), files=[f"{tmp_path}/none.txt"], range=[])
    assert refused(Kind(config).check).startswith(f"reward.files: no file or folder {tmp_path}/none.txt; give what")


def test_what_the_file_puts_on_the_path_is_known_to_its_key(write, tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "far_away_helper.py").write_text("VALUE = 3.0\n")
    lines = f"import sys\nsys.path.insert(0, {str(tmp_path / 'lib')!r})\nimport far_away_helper\n"
    function = write(lines + "def score(texts):\n    return [far_away_helper.VALUE] * len(texts)\n")
    kind = Kind(OwnConfig(name="own", function=function, files=[], range=[]))
    kind.check()
    assert set(kind.identity(None)["modules"]) == {"far_away_helper"}
    assert kind.open(CPU, None).score(["a"]).reward[0] == 3.0
    sys.path.remove(str(tmp_path / "lib"))


def test_modules_beside_the_file_do_not_hide_libraries(write, tmp_path):
    """One that something else imports later, as the package does with datasets."""
    (tmp_path / "fractions.py").write_text("raise SystemExit\n")
    OwnReward(write(GOOD)).score(["a"])
    assert str(tmp_path) not in sys.path


# --- bad numbers: refused with the text that they came for


@pytest.mark.parametrize(("value", "shown"), [("nan", "nan"), ("inf", "inf"), ("-inf", "-inf")])
def test_a_number_that_is_not_finite(write, value, shown):
    source = f"def score(texts):\n    return [1.0] * (len(texts) - 1) + [float('{value}')]\n"
    message = refused(OwnReward(write(source)).score, TEXTS)
    assert message == f"reward.function score gave {shown} for the text 'dddd'; return finite numbers"


def test_none_is_not_finite(write):
    source = "def score(texts):\n    return [None for _ in texts]\n"
    assert refused(OwnReward(write(source)).score, TEXTS).startswith("reward.function score ")


@pytest.mark.parametrize(
    ("expression", "shape"),
    [
        ("[1.0]", "(1,)"),
        ("[1.0] * 5", "(5,)"),
        ("1.0", "()"),
        ("[[1.0], [1.0], [1.0], [1.0]]", "(4, 1)"),
        ("[]", "(0,)"),
    ],
)
def test_the_wrong_count(write, expression, shape):
    message = refused(OwnReward(write(f"def score(texts):\n    return {expression}\n")).score, TEXTS)
    assert message == f"reward.function score gave shape {shape} for 4 texts; return one float per text"


MASKED = "numpy.ma.masked_array([1.0, 2.0, 3.0, 4.0], mask=[0, 0, 1, 0])"


@pytest.mark.parametrize(
    ("expression", "what"),
    [
        ("['good'] * 4", "a list of str"),
        ("['1.5'] * 4", "a list of str"),
        ("'abcd'", "a str"),
        ("{}", "a dict"),
        ("{1.0, 2.0, 3.0, 4.0}", "a set"),
        ("(1.0 for _ in texts)", "a generator"),
        ("map(len, texts)", "a map"),
        ("[[1.0], [1.0, 2.0], [], []]", "a list that is no row of numbers ("),
        ("[10**400] * 4", "a list that is no row of numbers ("),
        ("[1j] * 4", "a list of complex"),
        ("numpy.array(['2020-01-01'] * 4, dtype='datetime64[s]')", "a ndarray of datetime64"),
        (MASKED, "a MaskedArray with masked values"),
        (f"list({MASKED})", "a list with masked values"),
    ],
)
def test_no_numbers_at_all(write, expression, what):
    reward = OwnReward(write(f"import numpy\n\ndef score(texts):\n    return {expression}\n"))
    message = refused(reward.score, TEXTS)
    assert message.startswith(f"reward.function score gave {what}") and message.endswith("; return one float per text")


@pytest.mark.filterwarnings("error")
def test_an_async_function_is_called_that(write):
    message = refused(OwnReward(write("async def score(texts):\n    return [1.0] * len(texts)\n")).score, TEXTS)
    assert message == ("reward.function score gave a coroutine: it is an async function; return one float per text")


@pytest.mark.parametrize(
    "expression",
    [
        "torch.tensor([1.0, 2, 3, 4], requires_grad=True)",
        "torch.tensor([1.0, 2, 3, 4], dtype=torch.bfloat16)",
        "[torch.tensor(float(n), requires_grad=True) for n in (1, 2, 3, 4)]",
        "[torch.tensor(n, dtype=torch.bfloat16) for n in (1, 2, 3, 4)]",
        "torch.nn.Parameter(torch.arange(1.0, 5))",
        "numpy.ma.masked_array([1.0, 2.0, 3.0, 4.0])",
        "numpy.arange(1, 5)",
    ],
)
def test_tensors_and_arrays_of_any_type(write, expression):
    reward = OwnReward(write(f"import numpy, torch\n\ndef score(texts):\n    return {expression}\n"))
    assert reward.score(TEXTS).reward.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("base", ["Exception", "BaseException"])
def test_an_error_that_cannot_be_told(write, base):
    lines = (
        f"class Wrong({base}):\n    def __str__(self):\n        raise OSError\n\ndef score(texts):\n    raise Wrong\n"
    )
    function = write(lines)
    message = refused(OwnReward(function).score, TEXTS)
    assert message.startswith("reward.function score raised Wrong: its message cannot be read (")
    assert "raised Wrong" in refused(OwnReward, write(lines + "raise Wrong\n"))


def test_a_function_that_raises(write):
    """Its line is named, also where it is a library that raises."""
    function = write("def score(texts):\n    import json\n    return json.loads('[1')\n")
    message = refused(OwnReward(function).score, TEXTS)
    assert message.startswith("reward.function score raised JSONDecodeError: ")
    assert message.endswith(f"({function.rpartition(':')[0]}:3)")


# --- files and names


def test_no_file(tmp_path):
    message = refused(OwnReward, f"{tmp_path}/none.py:score")
    assert message.startswith(f"reward.function={tmp_path}/none.py:score: no file {tmp_path}/none.py")


def test_a_path_to_a_function(write, tmp_path, monkeypatch):
    assert locate(write(GOOD)) == (tmp_path / "own.py", "score")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate("~/own.py:score") == (tmp_path / "own.py", "score")
    monkeypatch.chdir(tmp_path)
    assert locate("own.py:score") == (Path("own.py"), "score")


def test_no_such_function(write):
    assert "own.py has no function other" in refused(OwnReward, write(GOOD, "other"))
    assert "own.py has no function word" in refused(OwnReward, write("word = 3\n", "word"))


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import a_library_that_is_not_there", "ModuleNotFoundError"),
        ("def score(", "SyntaxError"),
        ("1 / 0", "ZeroDiv"),
    ],
)
def test_a_file_that_cannot_be_imported(write, source, error):
    message = refused(OwnReward, write(source))
    assert message.startswith("reward.function=") and f"raised {error}" in message


def test_a_file_that_leaves(write):
    assert "raised SystemExit" in refused(OwnReward, write("import sys\nsys.exit(0)\n"))
    assert "raised SystemExit" in refused(
        OwnReward(write("import sys\ndef score(texts):\n    sys.exit(0)\n")).score, TEXTS
    )


# --- settings of the whole process


CHANGES = [
    "torch.set_grad_enabled(False)",
    "torch.set_default_dtype(torch.float64)",
    "torch.set_default_device('meta')",
    "torch.set_num_threads(3)",
    "torch.set_float32_matmul_precision('medium')",
    "torch.use_deterministic_algorithms(True)",
    "torch.manual_seed(5)",
    "numpy.random.seed(5)",
    "numpy.seterr(all='raise')",
    "random.seed(5)",
    "os.chdir('/')",
]


def values_set() -> list[Any]:
    numpy_random: Any = np.random.get_state()
    values: list[Any] = [
        torch.is_grad_enabled(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.get_num_threads(),
    ]
    values += [torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()]
    values += [torch.get_rng_state().tolist(), numpy_random[1].tolist(), random.getstate()]
    return [*values, np.geterr(), os.getcwd()]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("when", ["import", "call", "failure"])
def test_settings_that_it_changes_are_its_own(write, change, when):
    before = values_set()
    lines = f"import os, random\nimport numpy, torch\n{change if when == 'import' else ''}\ndef score(texts):\n"
    inside = f"    {change}\n" if when == "call" else f"    {change}\n    1 / 0\n" if when == "failure" else ""
    reward = OwnReward(write(f"{lines}{inside}    return [0.0] * len(texts)\n"))
    if when == "failure":
        refused(reward.score, TEXTS)
    else:
        reward.score(TEXTS)
    assert all(after == value for after, value in zip(values_set(), before, strict=True))


def test_it_keeps_its_own_settings_between_calls(write, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "value.txt").write_text("7")
    lines = f"import os, random, torch\nos.chdir({str(tmp_path / 'there')!r})\ntorch.set_default_dtype(torch.float64)\n"
    lines += "def score(texts):\n    size = torch.zeros(1).element_size()\n"
    lines += "    return [float(open('value.txt').read()) + size + random.random() for _ in texts]\n"
    reward = OwnReward(write(lines))
    first, second = reward.score(["a"]).reward[0], reward.score(["a"]).reward[0]
    assert int(first) == int(second) == 15 and first != second  # random numbers go on


def test_a_range_bounds_the_reward(write):
    inside = Kind(OwnConfig(name="own", function=write(GOOD), files=[], range=[0.0, 9.0]))
    assert inside.range == (0.0, 9.0) and Kind(OwnConfig("own", write(GOOD), [], [])).range == (-math.inf, math.inf)
    narrow = Kind(OwnConfig(name="own", function=write(GOOD), files=[], range=[-1.0, 0.5]))
    message = refused(CheckedReward(narrow.open(CPU, None), narrow).score, TEXTS)
    assert message.endswith("its range is -1 to 0.5: mend reward.range, or the reward")


@pytest.mark.parametrize("ends", [[1.0], [1.0, 0.0], [0.0, 0.0], [0.0, math.inf], [0.0, math.nan]])
def test_what_is_no_range(write, ends):
    with pytest.raises(ConfigError, match=r"^reward.range=\[.*\] is no range; give two numbers, the smaller one first"):
        OwnConfig(name="own", function=write(GOOD), files=[], range=ends).check("reward.")
