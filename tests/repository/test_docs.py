"""What the pages say works: their Python blocks, their commands, and the files they name.

CONTRIBUTING.md says how a page prepares a block, or marks one that cannot run.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import sys
import types
from pathlib import Path

import gin
import nbclient
import nbformat
import pytest
import torch
from markdown_it import MarkdownIt

import metaloss
from metaloss import __main__ as command
from metaloss import config, errors
from metaloss.config import gin_files, plugins
from metaloss.config.registry import REGISTRIES
from metaloss.engines.base import Certificate
from metaloss.engines.parts import certificate, linearity
from tests.helpers import ROOT

PAGES = [
    *ROOT.glob("*.md"),
    *(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts),
    *(ROOT / folder / "README.md" for folder in ("examples", "gin_configs", "plugins")),
]
README = ROOT / "README.md"
MARKDOWN = MarkdownIt().enable("table")
SETUP = re.compile(r"<!-- setup\n(.*)-->\s*", re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: \S.*-->\s*", re.DOTALL)
#: What a reader puts in the place of: DIR, RUN, `$seed`; not the NaN of a message.
PLACEHOLDER = re.compile(r"\b[A-Z]{2,}\b|\$\w+|…")


def pages(has, full=()):
    """A test for each page of which something is true, by its path; `full` is left to that run."""
    found = {page.relative_to(ROOT).as_posix(): page for page in sorted(PAGES) if has(page)}
    cases = [
        pytest.param(page, id=name, marks=pytest.mark.full if name in full else ())
        for name, page in found.items()
    ]
    return pytest.mark.parametrize("page", cases)


# --- Python ---


def python_blocks(page):
    """The page's Python in order, each block at its own line so that tracebacks name the page's."""
    preceding = ""
    for token in MARKDOWN.parse(page.read_text()):
        setup = SETUP.fullmatch(token.content) if token.type == "html_block" else None
        is_python = token.type == "fence" and token.info == "python"
        if setup or (is_python and not NOT_RUN.fullmatch(preceding)):
            code = setup[1] if setup else token.content
            yield compile("\n" * (token.map[0] + 1) + code, str(page), "exec")
        preceding = token.content if token.type == "html_block" else ""


@pytest.fixture
def namespace(monkeypatch):
    """An empty module for a page; the components that it registers are forgotten afterwards."""
    plugins.load_all([])
    modules = set(sys.modules)
    before = {kind: set(registry) for kind, registry in REGISTRIES.items()}
    module = types.ModuleType("a_page")
    monkeypatch.setitem(sys.modules, "a_page", module)
    yield vars(module)
    for kind, registry in list(REGISTRIES.items()):
        for name in set(registry) - before.get(kind, set()):
            del registry._components[name]
            gin.config._REGISTRY.pop(f"{kind}.{name}")
        if kind not in before:
            del REGISTRIES[kind]
    for name in set(sys.modules) - modules:
        if name.startswith("metaloss_plugins."):
            del sys.modules[name]


#: Pages that train by the defaults, which takes up to a quarter of a minute.
LONG = ("README.md", "docs/quickstart.md", "docs/inspect.md")


@pages(lambda page: any(python_blocks(page)), full=LONG)
def test_the_python_of_a_page_runs(page, namespace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for block in python_blocks(page):
        exec(block, namespace)


# --- commands ---


def command_lines(page):
    """The lines of a page's shell blocks, continued lines joined."""
    for token in MARKDOWN.parse(page.read_text()):
        if token.type == "code_block" or (token.type == "fence" and token.info in SHELLS):
            yield from token.content.replace("\\\n", " ").splitlines()


SHELLS = ("", "bash", "console", "sh", "shell")
PROGRAM = re.compile(r"(?:tools|examples)/\w+\.py")
COMMAND = re.compile(r"^ *metaloss ([\w-]+)")


def calls(page):
    """The programs of this repository that a page calls, and their arguments."""
    of_tools = (COMMAND.sub(tool_of, line) for line in command_lines(page))
    for line in filter(PROGRAM.search, of_tools):
        lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
        lexer.commenters, lexer.whitespace_split = "#", True
        words = list(lexer)
        for i, word in enumerate(words):
            if PROGRAM.fullmatch(word):
                end = next((k for k in range(i, len(words)) if words[k] in SEPARATORS), None)
                yield word, [argument.strip("[]") for argument in words[i + 1 : end]]


def tool_of(match):
    """The file of a sub-command; one that is not there, where there is none."""
    return f"tools/{command.commands().get(match[1], Path(match[1])).stem}.py"


SEPARATORS = (";", "&&", "||", "|", "&", ">", ">>", ")")


def parse(program, arguments):
    """What the program's own parser makes of arguments; numbers stand in for placeholders."""
    spec = importlib.util.spec_from_file_location("a_program", ROOT / program)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.parse_arguments([re.sub(r"\bSEED\b|\$seed\b", "0", word) for word in arguments])


@pages(lambda page: any(calls(page)))
def test_the_commands_of_a_page_are_understood(page, capsys):
    for program, arguments in calls(page):
        assert (ROOT / program).is_file(), program
        try:
            found = parse(program, arguments)
        except SystemExit:
            pytest.fail(f"{program} {shlex.join(arguments)}\n{capsys.readouterr().err}")
        files = getattr(found, "gin_file", None) or []
        named = [file for file in files if not PLACEHOLDER.search(file)]
        for file in named:
            gin_files.find(file)
        bindings = getattr(found, "gin_param", None) or []
        whole = files == named and not any(map(PLACEHOLDER.search, bindings))
        if files and whole and not getattr(found, "plugin", None):
            plugins.load_all([])
            unread = config.load(files, bindings).unread
            assert not [name for name in unread if "--gin_param" in name], unread


@pages(lambda page: True)
def test_the_targets_and_extras_that_a_page_names_are_there(page):
    makefile, setup = (ROOT / "Makefile").read_text(), (ROOT / "setup.py").read_text()
    lines = "\n".join(command_lines(page))
    for target in re.findall(r"^make (\w+)", lines, re.MULTILINE):
        assert f"\n{target}:" in makefile, target
    for extras in re.findall(r"(?:metaloss|\.)\[([\w,]+)\]", page.read_text()):
        for extra in extras.split(","):
            assert f'"{extra}": ' in setup, extra


# --- files ---


def links(page):
    """Where links and pictures of a page lead, without those to other sites."""
    tokens = [t for block in MARKDOWN.parse(page.read_text()) for t in block.children or []]
    found = [t.attrGet("href") or t.attrGet("src") for t in tokens]
    return [link for link in found if link and not re.match(r"https?:|mailto:|#", link)]


@pages(links)
def test_the_links_of_a_page_lead_somewhere(page):
    for link in links(page):
        assert (page.parent / link.partition("#")[0]).exists(), link


def test_every_page_is_in_the_contents():
    docs = ROOT / "docs"
    for index in docs.rglob("index.md"):
        toctrees = re.findall(r"```\{toctree\}\n(.*?)```", index.read_text(), re.DOTALL)
        entries = {line for tree in toctrees for line in tree.splitlines() if line[:1].isalpha()}
        written = [*index.parent.glob("*.md"), *index.parent.glob("notebooks/*.ipynb")]
        for page in set(written) - {index}:
            assert page.relative_to(index.parent).with_suffix("").as_posix() in entries


def test_the_table_of_the_readme_names_gin_files():
    for kind in ("tasks", "methods"):
        (row,) = re.findall(rf"^\| {kind} \|.*", README.read_text(), re.MULTILINE)
        names = re.findall(r"`([a-z0-9_]+)`", row)
        assert names
        for name in names:
            assert (ROOT / "gin_configs" / kind / f"{name}.gin").is_file(), name


# --- errors ---


def messages(folder):
    """The texts in the code, "…" for what is put in; texts that follow each other joined."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                parts = (part.value if hasattr(part, "value") else "" for part in node.values)
                yield "".join(part if isinstance(part, str) else "…" for part in parts)


def test_the_errors_of_the_faq_are_those_of_the_code():
    known = list(messages(ROOT / "metaloss"))
    listed = re.findall(r"^\* `(.+)`$", (ROOT / "docs" / "faq.md").read_text(), re.MULTILINE)
    assert len(listed) > 30
    for message in listed:
        pieces = [piece.strip() for piece in message.split("…") if piece.strip(" ':·().")]
        assert any(all(piece in text for piece in pieces) for text in known), message


#: Rooms whose refusals and warnings a learner or an exported loss can meet.
ROOMS = (
    "engines", "problem", "meta_optimizers", "learner.py", "links.py", "base_optimizers/base.py",
    "representations/saved/learned_loss.py", "testing/certification/model.py",
)  # fmt: skip


def told(path):
    """What a file's errors for people, and its warnings, begin with; "…" for what is put in."""
    for node in ast.walk(ast.parse(path.read_text())):
        call = node.exc if isinstance(node, ast.Raise) else node
        if not isinstance(call, ast.Call) or not call.args:
            continue
        name = getattr(call.func, "id", getattr(call.func, "attr", ""))
        raised = isinstance(node, ast.Raise) and hasattr(errors, name) and name != "ArgumentError"
        if raised or name == "warn":
            text, *_ = [*texts(call.args[0]), ""]
            yield text


def texts(node):
    if isinstance(node, ast.BinOp):  # the first of what is put together
        yield from texts(node.left)
    elif isinstance(node, ast.IfExp):
        yield from texts(node.body)
    elif isinstance(node, ast.Constant):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield "".join(getattr(part, "value", "") if isinstance(part, ast.Constant) else "…"
                      for part in node.values)  # fmt: skip


def pieces_of(message):
    return [piece for part in message.split("…") if len(piece := part.strip(" ':·().,")) > 5]


def test_the_faq_has_each_error_that_a_learner_can_meet():
    page = (ROOT / "docs" / "faq.md").read_text()
    listed = [*re.findall(r"`([^`\n]+)`", page), *re.findall(r"^\* `(.+)`$", page, re.MULTILINE)]
    pieces = [
        found for message in listed if max(map(len, found := pieces_of(message) or [""])) > 12
    ]
    found = 0
    for room in (ROOT / "metaloss" / name for name in ROOMS):
        for path in sorted(room.rglob("*.py")) if room.is_dir() else [room]:
            for text in told(path):
                if max(map(len, pieces_of(text) or [""])) > 20:  # others are mostly put in
                    found += 1
                    assert any(all(p in text for p in each) for each in pieces), (path.name, text)
    assert found > 90


def test_the_faq_has_each_cause_that_a_certificate_names():
    page = " ".join((ROOT / "docs" / "faq.md").read_text().split())
    tree = ast.parse(Path(certificate.__file__).read_text())
    appended = [
        text
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "append"
        for text in texts(node.args[0])
    ]
    causes = [text for text in appended if " " in text]
    assert len(causes) == 4
    for text in (
        *causes,
        linearity.CAUSE,
        linearity.WHY_TRANSFORM,
        Certificate(torch.zeros(()), 0.0).cause,
    ):
        # What is said of the kind of the cause, and not what it may be.
        said = re.split(r": |, \.detach", text)[0]
        assert all(piece in page for piece in pieces_of(said)), text


# --- notebooks ---


@pytest.mark.full
@pytest.mark.parametrize(
    "path", sorted((ROOT / "docs").glob("notebooks/*.ipynb")), ids=lambda p: p.stem
)
def test_a_notebook_runs_and_is_kept_without_outputs(path, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()


# --- the walk of one step ---


def test_a_step_walks_the_files_that_the_page_names_in_that_order():
    """docs/concepts.md: at most eight files, in the order of first visits; no other is hidden."""
    section = (ROOT / "docs/concepts.md").read_text().split("## One step, file by file")[1]
    table, beside = section.split("\n## ")[0].split("On the way they ask")
    walk, asked = (re.findall(r"`([\w/]+\.py)`", text) for text in (table, beside))
    assert len(walk) <= 8
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    learner = metaloss.AdaLFL(model, optimizer, metaloss.REPRESENTATIONS["nn"]())
    batch = torch.randn(6, 4), torch.randint(3, (6,))
    learner.step(batch, batch)  # asks first-time questions, and `auto` chooses
    package, visited = f"{ROOT}/metaloss/", []

    def note(frame, event, argument):
        if event == "call" and frame.f_code.co_filename.startswith(package):
            visited.append(frame.f_code.co_filename.removeprefix(package))

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        learner.step(batch, batch)
    finally:
        sys.setprofile(before)
    first_visits = dict.fromkeys(visited)
    assert [file for file in first_visits if file in walk] == walk
    assert {*first_visits} - {*walk} == {*asked}
