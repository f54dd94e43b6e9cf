"""Exports: a trained model as one file that runs without metaloss, checked against the model.

"onnx"           a graph for onnxruntime and others
"torch_export"   the same graph for torch alone (.pt2)
"safetensors"    a folder as a finished run leaves it, of one kind of weights

The graph begins with raw inputs, as the task's files hold them (bytes of pictures of the right
size, numbers that are not scaled), and ends with probabilities, or values in the targets' own
units, so that nothing is left that one could prepare otherwise than training did. Of a table a file
of Python beside the graph makes its numbers of rows.
"""

from __future__ import annotations

import copy
import io
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from metaloss.config import plugins
from metaloss.errors import InputError, first_line
from metaloss.machine import processes
from metaloss.machine.files import check_output, write_atomically
from metaloss.runs.folder import RunFolder
from metaloss.runs.precision import in_old_style_too
from metaloss.runs.trained import inputs, model_card
from metaloss.runs.trained.answers import Answer
from metaloss.runs.trained.model import TrainedModel, load_model, warnings_as_lines
from metaloss.runs.trained.saved_model import Weights
from metaloss.tasks.base import Data

Format = Literal["onnx", "torch_export", "safetensors"]
ENDINGS = {"onnx": ".onnx", "torch_export": ".pt2"}
EXAMPLES = 64  #: that an export is checked on
LARGEST = 1e-4  #: difference between an export and the model, of probabilities or scaled targets


def export(trained: TrainedModel, path: Path, format: Format) -> str:
    """Writes an export, if it gives what the model gives.

    Args:
        trained: the model.
        path: a file, or of "safetensors" a folder.
        format: see above.

    Returns:
        What was written and how it was checked, in a line.

    Raises:
        InputError: torch cannot export the model, a package is missing, or the export gives
            something else; nothing is written.
    """
    if format == "safetensors":
        trained.write(path)
        return f"{path}: model.json, weights.safetensors and README.md"
    about = trained.about.to(torch.device("cpu"))
    answer = Answer(copy.deepcopy(trained.outputs).cpu(), about).eval()
    examples, whose = _examples(trained)
    with in_old_style_too(), torch.no_grad(), warnings.catch_warnings():
        # Of torch's exporters about themselves; what matters is checked below.
        warnings.simplefilter("ignore")
        try:
            write, run = FORMATS[format](answer, examples[:2], about)
        except InputError:
            raise
        except Exception as error:  # of torch's compiler anything may come
            reason = f"{type(error).__name__}: {first_line(_cause(error))}"
            raise InputError(f"torch cannot export this model as {format}: {reason}") from error
        difference = _difference(run(examples), answer(examples), about)
    if not difference <= LARGEST:
        raise InputError(
            f"the {format} export is not the model: it differs by {difference:.2g} on {whose}, and "
            f"{LARGEST:g} is allowed; nothing was written"
        )
    write_atomically(path, write)
    said = f"{path}: differs from the model by {difference:.2g} at most, on {whose}"
    if about.encoding is None:
        return said
    beside, code = rows_beside(path), model_card.code_of_rows(about.encoding.plain())
    write_atomically(beside, lambda file: file.write_text(code, "utf-8"))
    return f"{said}; rows become its inputs by encode(rows, ENCODING) of {beside}"


def rows_beside(path: Path) -> Path:
    """Where an export of a table's model has the code that makes numbers of rows."""
    return path.with_suffix(".py")


Write = Callable[[Path], object]
Run = Callable[[Tensor], Tensor]


def _torch(answer: Answer, example: Tensor, about: Data) -> tuple[Write, Run]:
    shapes = ({0: torch.export.Dim("n")},)
    program = torch.export.export(answer, (example,), dynamic_shapes=shapes)
    content = io.BytesIO()  # to a file of another ending than .pt2 torch saves with a warning
    torch.export.save(program, content)
    return lambda path: path.write_bytes(content.getvalue()), program.module()


def _onnx(answer: Answer, example: Tensor, about: Data) -> tuple[Write, Run]:
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"--format=onnx needs onnx, onnxscript and onnxruntime ({error.name} is not there): "
            "pip install 'metaloss[onnx]'"
        ) from None
    program: Any = torch.onnx.export(
        answer, (example,), dynamo=True, verbose=False, input_names=["inputs"],
        output_names=[answer.kind], dynamic_shapes=({0: "n"},),
    )  # fmt: skip
    for name, words in (("classes", about.classes), ("targets", about.target_names)):
        if words is not None:
            program.model.metadata_props[name] = json.dumps(words)
    content = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(raw: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"inputs": raw.numpy()})[0])

    return lambda path: path.write_bytes(content), run


FORMATS = {"onnx": _onnx, "torch_export": _torch}


def _examples(trained: TrainedModel) -> tuple[Tensor, str]:
    """Raw inputs to compare on, and whose they are: validation data, else made up."""
    about = trained.about
    try:
        raw = trained.data.raw("valid", EXAMPLES).cpu()
        if inputs.takes_bytes(about) and raw.dtype != torch.uint8:
            raw = (255 * raw).round().clamp(0, 255).to(torch.uint8)
        return raw, f"{len(raw)} validation examples"
    except InputError as error:
        generator = torch.Generator().manual_seed(0)
        shape = (EXAMPLES, *about.input_shape)
        if inputs.takes_bytes(about):
            drawn = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        else:  # as far from the mean as the training's were
            assert about.preparation is not None
            drawn = about.preparation.to(torch.device("cpu")).undo(
                torch.randn(shape, generator=generator)
            )
        return drawn, f"{EXAMPLES} made-up inputs, as there are no data ({first_line(error)})"


def _cause(error: BaseException) -> BaseException:
    """What an error came of first."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _difference(found: Tensor, expected: Tensor, about: Data) -> float:
    """The largest, of probabilities; of values in units of the training's range."""
    unit = 1.0 if about.unit is None else about.unit.cpu()
    return float(((found.double() - expected.double()) / unit).abs().max())


# --- the command ---


@warnings_as_lines()
def command(
    run: Path,
    format: Format,
    output: Path,
    weights: Weights = "tested",
    calibrated: bool = False,
    overwrite: bool = False,
    data_dir: str | None = None,
    plugin: Sequence[str] = (),
    threads: int | None = None,
) -> str:
    """What `tools/export.py` is asked of a run's model; the arguments are its flags.

    Returns:
        A line to read.

    Raises:
        InputError: see `export`; or something that was given cannot be used.
    """
    if format != "safetensors":
        check_output(output, (ENDINGS[format],))
    elif output.resolve() == run.resolve():
        raise InputError(f"--output {output}: {run} stays as it is; write elsewhere")
    for path in (output, *([] if format == "safetensors" else [rows_beside(output)])):
        if path.exists() and not overwrite:
            raise InputError(f"--output {path} is there already: --overwrite replaces it")
    plugins.load_all(plugin, remembered=RunFolder(run).plugins())
    processes.set_threads(threads)
    trained = load_model(run, "cpu", data_dir, weights=weights, calibrated=calibrated)
    return f"{run}, step {trained.step} of {trained.steps}: {export(trained, output, format)}"
