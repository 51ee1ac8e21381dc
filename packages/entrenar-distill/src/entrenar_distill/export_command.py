"""The command `export`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from entrenar_core.errors import UsageError
from entrenar_core.exporting.result import ExportReport

EXAMPLES = """
entrenar-distill export --input ./out --format gguf --quantize q4_k_m --output model.gguf --verify

entrenar-distill export --input ./out --format gguf --quantize q3_k_m --calibration notes.txt --output model.gguf

entrenar-distill export --input ./out --format onnx --quantize int8 --output model.onnx

entrenar-distill export --input ./out/checkpoints/step-00000120 --format safetensors --dtype bf16 --output ./half

entrenar-distill export --input model.gguf --format safetensors --output ./model   dequantised, to be trained again

entrenar-distill export --input ./out --push org/name --private   the folder as it is, in one commit

entrenar-distill export --input ./out --format gguf --quantize q8_0 --output model.gguf --push org/name-gguf
"""
FormatName = Literal["safetensors", "gguf", "apr", "apr-json", "onnx"]


def export(
    source: Annotated[
        str,
        typer.Option(
            "--input",
            "-i",
            metavar="MODEL",
            help="A result folder, a checkpoint, any Hugging Face folder, a .gguf, org/name, pkg://package/path.",
        ),
    ],
    format: Annotated[  # noqa: A002 - as the flag is called
        FormatName | None,
        typer.Option("--format", help="The format to write; as --output ends, if not given.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="A file, where it ends as the format does; else a folder."),
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="GGUF: f32, f16, bf16, q8_0, q6_k, q5_k_m, q4_k_m, q4_0, iq4_xs and others; "
            "APR: q4_k_m, q6_k; ONNX: int8.",
        ),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Cast weights instead: bf16, fp16, fp32 or fp64.")] = None,
    shard_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Safetensors: write files of at most this size: 5GB.")
    ] = None,
    imatrix: Annotated[
        Path | None, typer.Option(help="GGUF: an importance matrix, as llama.cpp's imatrix tool writes it.")
    ] = None,
    calibration: Annotated[
        Path | None, typer.Option(metavar="TEXT", help="GGUF: compute an importance matrix from this text.")
    ] = None,
    calibration_chunks: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Read so many chunks of 512 tokens of that text; all, if not given."),
    ] = None,
    save_imatrix: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep the importance matrix that was computed.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Run the GGUF in llama.cpp, and fail where it differs from the model.")
    ] = False,
    verify_text: Annotated[
        Path | None, typer.Option(metavar="TEXT", help="The text to compare on, instead of the built-in one.")
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="ORG/NAME", help="Upload what was written, or the folder as it is.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    include_metadata: Annotated[
        bool,
        typer.Option(
            "--include-metadata/--no-include-metadata", help="Say where the model comes from, in the file and its card."
        ),
    ] = True,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read PyTorch files too. Nothing in them is run.")
    ] = False,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub model.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier model in the output.")] = False,
) -> ExportReport:
    """Write a trained model as files that other programs load, and upload it."""
    from entrenar_core.exporting.settings import ExportSettings
    from entrenar_core.formats.encoding import dtype_called
    from entrenar_core.units import parse_size
    from entrenar_distill.exporting import called, run_export, run_push

    if private and push is None:
        raise UsageError("--private is for what is uploaded", "name a repository with --push")
    if output is None:
        if push is None or format is not None or quantize is not None or dtype is not None:
            raise UsageError("there is no --output to write to", "name a file or a folder, such as -o model.gguf")
        if verify or shard_size or force or not include_metadata or calibration or imatrix:
            raise UsageError("a folder is pushed as it is, and its files stay what they are", "name an --output too")
        return run_push(source, push, private=private, revision=revision)
    settings = ExportSettings(
        called(format, output),
        quantize=quantize,
        dtype=None if dtype is None else dtype_called(dtype),
        shard_bytes=None if shard_size is None else parse_size(shard_size),
        imatrix=imatrix,
        calibration=calibration,
        calibration_chunks=calibration_chunks,
        save_imatrix=save_imatrix,
        verify=verify,
        passage=verify_text,
        include_metadata=include_metadata,
        allow_pickle=allow_pickle,
        force=force,
    )
    return run_export(source, output, settings, revision=revision, push=push, private=private)
