"""A prepared run in a folder that it holds, left so that it can go on, whatever ends it."""

import contextlib
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from accelerate import Accelerator

from entrenar_core.errors import Interrupted
from entrenar_core.reproducibility import differences, environment
from entrenar_core.training.callbacks import Callback, tell
from entrenar_core.training.ranks import on_main
from entrenar_core.training.run_folder import RunFolder, read_manifest
from entrenar_core.training.signals import StopRequest

Report = TypeVar("Report")


def carry_out(
    run: Callable[[StopRequest], Report],
    folder: RunFolder,
    accelerator: Accelerator,
    callbacks: Sequence[Callback],
    *,
    config: Mapping[str, Any],
    fingerprints: Mapping[str, str | None],
    notes: Iterable[str],
    resume: bool,
    force: bool,
) -> Report:
    """Takes the folder, runs, and says in the folder how it ended; what `run` is given tells whether to stop.

    Raises:
        Interrupted: after Ctrl-C, with what to do to go on.
        EntrenarError: whatever `run` raises, or the folder cannot be used.
    """
    manifest = {"config": config, "fingerprints": dict(fingerprints), "environment": environment()}
    before = read_manifest(folder.path) if resume else None
    if before is not None and (changed := differences(before.get("environment", {}), manifest["environment"])):
        tell(callbacks, f"resumed with {', '.join(changed)}: the bits may not be those of an unbroken run")
    on_main(accelerator, lambda: folder.open(manifest, resume=resume, force=force))
    for text in notes:
        tell(callbacks, text)
    try:
        with StopRequest(lambda: tell(callbacks, "stopping as soon as all is saved; once more stops at once")) as stop:
            return run(stop)
    except BaseException as error:
        if accelerator.is_main_process:
            with contextlib.suppress(Exception):  # the first error is the one to report
                folder.finish("interrupted")
        if isinstance(error, Interrupted):
            where = shlex.quote(str(folder.path))
            hint = f"give the same command with --resume to go on (its output is {where})"
            if not folder.begun:
                hint = f"give the same command again; the earlier run in {where} is still whole"
            raise Interrupted(error.message, hint) from None
        raise
    finally:
        accelerator.free_memory()
