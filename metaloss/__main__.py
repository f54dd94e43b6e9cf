"""The command `metaloss`: `metaloss train ...` is `python tools/train.py ...`; so is each tool."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import re
import sys
from pathlib import Path

import metaloss
from metaloss.errors import InputError, answered, did_you_mean

#: The tools: beside the package in a checkout, inside it when installed.
_HERE = Path(__file__).parent
TOOLS = next(d for d in (_HERE.parent / "tools", _HERE / "tools") if (d / "train.py").is_file())

#: What each shell evaluates, and what of it each command has a line of.
SHELLS = {
    "bash": (
        """\
_metaloss() {{
    local words=
    case "$COMP_CWORD ${{COMP_WORDS[1]}}" in
        "1 "*) words="{commands}" ;;
{flags}
    esac
    COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _metaloss metaloss
""",
        '        *" {name}") words="{flags}" ;;',
    ),
    "zsh": (
        """\
_metaloss() {{
    case "$CURRENT ${{words[2]}}" in
        "2 "*) compadd -- {commands}; return ;;
{flags}
    esac
    compset -P "*="
    _files
}}
(( $+functions[compdef] )) || {{ autoload -Uz compinit && compinit; }}
compdef _metaloss metaloss
""",
        '        *" {name}") [[ $PREFIX == -*=* ]] || compadd -- {flags} ;;',
    ),
    "fish": (
        """\
complete -c metaloss -n "__fish_is_nth_token 1" -f -a "{commands}"
{flags}
""",
        'for word in {flags}; complete -c metaloss -n "__fish_seen_subcommand_from {name}"'
        " -l (string sub -s 3 -- $word); end",
    ),
}


def commands() -> dict[str, Path]:
    """The file of each sub-command: a tool, with - for _ and without one at the end."""
    files = sorted(path for path in TOOLS.glob("*.py") if not path.name.startswith("_"))
    return {path.stem.rstrip("_").replace("_", "-"): path for path in files}


def overview() -> str:
    """Each sub-command with the first line of its docstring; none of them is imported."""
    lines = [f"  {name:16} {_first_line(path)}" for name, path in commands().items()]
    return "\n".join(["commands:", *lines, "", "metaloss COMMAND --help says what it takes."])


def completion(shell: str) -> str:
    """What a shell evaluates to complete sub-commands and their flags; of the rest, file names."""
    script, line = SHELLS[shell]
    flags = [
        line.format(name=name, flags=" ".join(_flags(path))) for name, path in commands().items()
    ]
    return script.format(commands=" ".join(commands()), flags="\n".join(flags))


def run(name: str, words: list[str]) -> int:
    """Carries a sub-command out; the exit code.

    Raises:
        InputError: there is none of this name.
    """
    known = commands()
    if name not in known:
        near = did_you_mean(name, known)
        raise InputError(f"no command '{name}'{near} · known: {', '.join(known)}")
    spec = importlib.util.spec_from_file_location(f"metaloss.tools.{known[name].stem}", known[name])
    assert spec is not None and spec.loader is not None
    tool = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    # Help and errors name the command as it was called.
    sys.argv[0] = f"metaloss {name}"
    tool.__doc__ = re.sub(r"python tools/(\w+?)_?\.py", _as_called, tool.__doc__ or "")
    code: int = tool.main(words)
    return code


def main(command_line: list[str] | None = None) -> int:
    """The command line; what follows a sub-command's name is that one's."""
    parser = argparse.ArgumentParser(
        prog="metaloss",
        description=_first_line(Path(metaloss.__file__)),
        epilog=overview(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--version", action="version", version=f"metaloss {metaloss.__version__}")
    add("--completion", nargs="?", const="bash", choices=SHELLS, metavar="SHELL",
        help="print what bash evaluates, or zsh or fish")  # fmt: skip
    add("command", nargs="?", metavar="COMMAND", help="one of those below")
    add("words", nargs=argparse.REMAINDER, metavar="...", help="what the command takes")
    asked = parser.parse_args(command_line)
    if asked.completion:
        print(completion(asked.completion), end="")
        return 0
    if asked.command is None:
        parser.error("give a COMMAND")
    return answered(lambda words: run(asked.command, words), asked.words)


def _first_line(source: Path) -> str:
    """Of a file's docstring."""
    return (ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or "").split("\n")[0]


def _flags(source: Path) -> list[str]:
    """Those that a tool's file adds to its parser."""
    tree = ast.parse(source.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
    adding = [c for c in calls if ast.unparse(c.func) in ("add", "parser.add_argument")]
    words = [ast.literal_eval(call.args[0]) for call in adding]
    return [word for word in words if word.startswith("--")] + ["--help"]


def _as_called(tool: re.Match[str]) -> str:
    """A tool's file in its docstring, as a sub-command."""
    return f"metaloss {tool[1].replace('_', '-')}"


if __name__ == "__main__":
    sys.exit(main())
