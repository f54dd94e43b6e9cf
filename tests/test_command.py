"""The command `metaloss`, and the package's public names, which are imported when they are used."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys

import pytest

import metaloss
from metaloss import __main__ as command
from tests.helpers import ROOT


def python(code):
    """What a fresh process prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_tool_is_a_command_and_its_help_imports_no_torch():
    out = python(
        "import sys\n"
        "from metaloss import __main__ as command\n"
        "for words in ([], *([name] for name in command.commands())):\n"
        "    try: command.main([*words, '--help'])\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "assert 'torch' not in sys.modules"
    )
    tools = [path.stem for path in (ROOT / "tools").glob("[!_]*.py")]
    for tool in tools:
        name = tool.rstrip("_").replace("_", "-")
        assert f"usage: metaloss {name} " in out
        assert f"\n  {name} " in out  # in the overview
    assert "python tools/" not in out


def test_a_command_is_the_tool(capsys):
    assert command.main(["list", "backbones.mlp"]) == 0
    assert capsys.readouterr().out.startswith("@backbones.mlp\n")


def test_an_unknown_command_is_one_line_with_the_nearest(capsys):
    assert command.main(["trian", "--seed=0"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: no command 'trian'; did you mean 'train'? · known: ")
    assert error.count("\n") == 1


def test_the_version(capsys):
    with pytest.raises(SystemExit) as end:
        command.main(["--version"])
    assert (end.value.code, capsys.readouterr().out) == (0, f"metaloss {metaloss.__version__}\n")


#: What a shell runs after the script of `--completion`, and prints: what it would offer.
OFFERED = {
    "bash": "COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _metaloss\n"
    "printf '%s\\n' ${{COMPREPLY[@]}}",
    "zsh": "words=({words}); CURRENT=$#words PREFIX=$words[-1]; _metaloss",
    "fish": 'complete -C "{words}"',
}
#: zsh completes within its line editor alone: in its place, words that begin as what is typed.
STUB = """
compdef() {}; compset() {}; _files() {}
compadd() { for word in "${@:2}"; do [[ $word == $PREFIX* ]] && print -- $word; done }
"""


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("metaloss tr", {"train", "transfer"}),
        ("metaloss train --dr", {"--dry_run"}),
        ("metaloss check-gradients --mo", {"--model"}),
    ],
)
@pytest.mark.parametrize("shell", OFFERED)
def test_shells_complete_commands_and_flags(shell, words, completed, capsys):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not there")
    assert command.main(["--completion", *([] if shell == "bash" else [shell])]) == 0
    script = capsys.readouterr().out + OFFERED[shell].format(words=words)
    script = STUB + script if shell == "zsh" else script
    done = subprocess.run([shell, "-c", script], capture_output=True, text=True, check=True)
    assert {line.split("\t")[0] for line in done.stdout.splitlines()} == completed


def test_type_checkers_and_python_see_the_same_public_names():
    tree = ast.parse((ROOT / "metaloss" / "__init__.py").read_text())
    (block,) = (
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    seen = {f"{node.module}:{alias.name}" for node in imports for alias in node.names}
    assert seen == set(metaloss._HOMES.values())
    assert set(metaloss.__all__) <= set(dir(metaloss))


def test_a_name_that_is_not_there():
    assert not hasattr(metaloss, "adalfl")
    with pytest.raises(ImportError):
        exec("from metaloss import adalfl")


def test_a_reader_that_has_seen_enough_ends_a_command_without_a_word():
    script = "import sys\nfrom metaloss.errors import answered\n"
    script += "sys.exit(answered(lambda n: [print('line') for _ in range(n)] and 0, 10**6))"
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, **pipes) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
