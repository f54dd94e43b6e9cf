"""The card of a model: what a person who finds its folder wants to know, and how to use it.

One of its snippets needs no metaloss: it makes the model, where that is a chain of torch's own
layers or of timm; of others it runs an export.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pprint import pformat
from typing import Any

import torch
from torch import nn

from metaloss.runs.trained import plain_rows

CARD = """\
# A trained model

{summary}

```python
import metaloss

model = metaloss.load_model("PATH OF THIS FOLDER")  # needs no data, and no gin file
model.predict({example}
```

{plain}

| | |
|---|---|
{rows}

Files: `model.json` (the same for programs){files}.
All of them are data and cannot run code.
"""
PLAIN = """\
Without metaloss, in this folder:

```python
import json
from pathlib import Path

{imports}
from safetensors.torch import load_file

about = json.loads(Path("model.json").read_text())
model = {model}
model.load_state_dict(load_file("weights.safetensors"))
model.eval()


def predict(raw):  # {raw}
    with torch.no_grad():  # gives {gives}
{body}
```
"""
ROWS = """
Rows of words, numbers and dates become these numbers without metaloss too, by
`encode(rows, about["data"]["encoding"])`:

```python
{code}
```
"""
EXPORTED = """\
Without metaloss: `metaloss export . --format=torch_export --output=model.pt2` in this folder makes,
once, a file that torch runs alone; `--format=onnx` makes one for onnxruntime.

```python
import torch

model = torch.export.load("model.pt2").module()


def predict(raw):  # {raw}
    with torch.no_grad():
        return model(raw)  # {gives}
```
"""


def text(about: Mapping[str, Any], model: nn.Module) -> str:
    """The card.

    Args:
        about: the content of model.json.
        model: built by it.
    """
    data = about["data"]
    weights = about["weights"]
    count = sum(parameter.numel() for parameter in model.parameters())
    rows = {
        "task, method": f"`{about['task']}`, `{about['method']}`, seed {about['seed']}",
        "backbone": f"`{about['backbone']}` {about['arguments'] or ''}".strip(),
        "inputs": f"{data['input_shape']}{', bytes' * data['bytes']}",
        "outputs": _outputs(data),
        **{f"weights: {kind}": f"`{w['file']}`, step {w['step']:,}" for kind, w in weights.items()},
        **{
            f"temperature: {kind}": f"{w['temperature']:.4g}: outputs divided by it are calibrated"
            for kind, w in weights.items()
            if w.get("temperature") is not None
        },
        **about["versions"],
    }
    return CARD.format(
        summary=f"`{about['backbone']}` with {count:,} parameters, trained on `{about['task']}`.",
        example=_example(data),
        plain=plain(about, model) or "",
        rows="\n".join(f"| {name} | {_cell(value)} |" for name, value in rows.items()),
        files="".join(f", `{w['file']}`" for w in weights.values()),
    )


def plain(about: Mapping[str, Any], model: nn.Module) -> str | None:
    """A snippet that predicts without metaloss; None where the task says no preparation."""
    data = about["data"]
    preparation = _preparation(data)
    if preparation is None:
        return None
    shape = ", ".join(map(str, ["n", *data["input_shape"]]))
    raw = f"[{shape}], {'bytes (uint8)' if takes_bytes(data) else 'numbers, not scaled'}"
    if data["encoding"] is not None:
        raw += ": what model.json makes of the columns, as below"
    code: str | None
    if about["backbone"] == "timm":
        imports, code = "import timm\nimport torch", _of_timm(about["arguments"], data)
    else:
        imports, code = "import torch\nfrom torch import nn", chain(model)
    lines, gives = _answer(data)
    rows = "" if data["encoding"] is None else ROWS.format(code=_plain_rows())
    if code is None:
        return EXPORTED.format(raw=raw, gives=gives) + rows
    body = "\n".join(f"        {line}" for line in (*preparation, *lines))
    return PLAIN.format(imports=imports, model=code, raw=raw, gives=gives, body=body) + rows


def code_of_rows(encoding: Mapping[str, Any]) -> str:
    """A file of Python that makes numbers of rows, without metaloss: `encode(rows, ENCODING)`.

    Args:
        encoding: as model.json has it.
    """
    return f"{_plain_rows()}\n\nENCODING = {pformat(dict(encoding), sort_dicts=False)}\n"


def _plain_rows() -> str:
    return Path(plain_rows.__file__).read_text("utf-8").rstrip()


def chain(model: nn.Module) -> str | None:
    """The code of a chain of torch's own layers, one within the other or not; None of another."""
    code = _code(model)
    if code is None:
        return None
    try:  # most layers are printed as they are written, but nobody promises it of all
        with torch.device("meta"):
            again: nn.Module = eval(code, {"nn": nn})
    except (TypeError, NameError, SyntaxError, ValueError):
        return None
    shapes = [{name: t.shape for name, t in m.state_dict().items()} for m in (model, again)]
    return code if shapes[0] == shapes[1] and repr(model) == repr(again) else None


def takes_bytes(data: Mapping[str, Any]) -> bool:
    """Whether raw inputs are the bytes of pictures, by what was kept of the data."""
    inputs = data["inputs"] if data["images"] is None else None
    return bool(data["bytes"]) or (inputs is not None and "unit" not in inputs)


def _code(model: nn.Module) -> str | None:
    if type(model) is nn.Sequential:
        inside = [_code(layer) for layer in model]
        lines = "".join(f"    {layer},\n" for layer in inside)
        return None if None in inside else f"nn.Sequential(\n{lines})"
    known = getattr(nn, type(model).__name__, None) is type(model)
    return f"nn.{model!r}" if known and not list(model.children()) else None


def _of_timm(arguments: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    given = {**(arguments["arguments"] or {}), "in_chans": data["input_shape"][0]}
    given["num_classes"] = data["outputs"]
    words = ", ".join(f"{name}={value!r}" for name, value in given.items())
    return f"timm.create_model({arguments['name']!r}, {words})"


def _preparation(data: Mapping[str, Any]) -> list[str] | None:
    """The lines by which raw inputs become the model's; None: the task does not say."""
    part = "inputs" if data["images"] is None else "images"
    if data[part] is None:
        return None
    lines = [f'scale = {{k: torch.tensor(v) for k, v in about["data"]["{part}"].items()}}']
    if "unit" in data[part]:
        lines = [lines[0].replace("(v)", "(v, dtype=torch.float64)")]
        return [*lines, 'inputs = ((raw.double() - scale["zero"]) / scale["unit"]).float()']
    raw = "raw.float() / 255" if takes_bytes(data) else "raw.float()"
    return [*lines, f'inputs = ({raw} - scale["mean"]) / scale["deviation"]']


def _answer(data: Mapping[str, Any]) -> tuple[list[str], str]:
    """The lines that make of the model's outputs what is asked for; and what that is."""
    if data["objective"] == "classification":
        return ["return model(inputs).softmax(-1)"], "probabilities of the classes, [n, classes]"
    if data["objective"] == "multi_label":
        return ["return model(inputs).sigmoid()"], "probabilities of each label, [n, labels]"
    gives = "values in the targets' own units, [n, targets]"
    if data["targets"] is None:
        return ["return model(inputs)"], gives
    return [
        'unit = {k: torch.tensor(v) for k, v in about["data"]["targets"].items()}',
        'return model(inputs) * unit["unit"] + unit["zero"]',
    ], gives


def _outputs(data: Mapping[str, Any]) -> str:
    words = data["classes"] or data["target_names"]
    named = f": {', '.join(words[:20])}{', ...' * (len(words) > 20)}" if words else ""
    return f"{data['outputs']}, {data['objective']}{named}"


def _example(data: Mapping[str, Any]) -> str:
    """What to predict for, as code."""
    if data["encoding"] is not None:
        first = list(data["encoding"]["columns"])[:2]
        return "{" + ", ".join(f"{name!r}: ..." for name in first) + ", ...})"
    if len(data["input_shape"]) == 3 and takes_bytes(data):
        return '"photo.jpg")'
    return f"inputs)  # an array [n, {', '.join(map(str, data['input_shape']))}]"


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
