"""Generation on tensors without data: a context is read, and a token more is written with the keys and values kept.

It goes as in transformers' `generate`: the cache is the one that it makes, a mask is given and hides nothing, and of
the context only the last logits are wanted.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, EncoderDecoderCache, PreTrainedModel

from entrenar_core.memory.estimate import Moment, Trace
from entrenar_core.memory.jobs import SEQ2SEQ, InferenceJob
from entrenar_core.memory.kv_cache import value_bytes
from entrenar_core.memory.positions import require_positions
from entrenar_core.memory.steps import Layers, Stage
from entrenar_core.memory.tracking import Tracking
from entrenar_core.models.heads import CAUSAL_LM
from entrenar_core.models.quiet import quietly

AS_STORED = "as stored"
"""The dtype of weights that are read as a file has them."""
_KEPT, _WEIGHTS = "KV cache", "student weights"
_STATE = "state"
"""What layers keep that does not grow with the context, while it is traced; in a trace it is of the cache."""
_UPDATES = {
    "update": (2, _KEPT, ("keys", "values")),
    "update_indexer": (1, _KEPT, ("indexer_keys",)),
    "update_conv_state": (1, _STATE, ("conv_states",)),
    "update_recurrent_state": (1, _STATE, ("recurrent_states",)),
}
"""Through which methods of a cache layers keep something: where their number is given, and where it is kept."""
_PASSED_AS = ("past_key_values", "cache_params", "state")


def trace_inference(
    job: InferenceJob, layers: Layers | None, granularity: int = 1, *, followed: int | None = None
) -> Trace:
    """What reading a context holds (`prefill`), and writing a token more (`decode`), with some layers, or all if None.
    A model that does not write is a pass `forward`.

    Args:
        job: what is read.
        layers: how many of the model's first layers there are.
        granularity: what the allocator rounds the bytes of a tensor up to.
        followed: read that many tokens only, after which keys and values are as long as if all of them were read.

    Raises:
        ModelError: transformers cannot make the model.
        UsageError: the context is longer than its positions, or no cache is kept in the dtype.
    """
    require_positions(job.model.config, job.context, job.model.name)
    with quietly():
        return Generation(job, layers, granularity, followed).trace()


class Generation:
    """A generation that can be traced once."""

    def __init__(self, job: InferenceJob, layers: Layers | None, granularity: int, followed: int | None = None) -> None:
        self.job, self.read = job, followed or job.context
        self.stage = Stage(granularity, padded=False, device=job.device)
        self.cache: Cache | EncoderDecoderCache | None = None
        self.rows = -(-job.batch_size // job.sharding.devices)
        self.model, self.watch, self.parameters = self.stage.model(job.model, 0, layers, _frozen)

    def trace(self) -> Trace:
        """Lets it read, and write a token."""
        with torch.no_grad(), self.stage.acting():
            if self.job.model.task in (CAUSAL_LM, SEQ2SEQ):
                self._write()
            else:
                self._read()
        moments = tuple(_as_held(moment, self.job) for moment in self.stage.ledger.moments())
        return Trace(moments, self.stage.tracking.flops, self.parameters, 0)

    def _read(self) -> None:
        """As an encoder, or with a head that judges rows."""
        asked = {"use_cache": False} if "use_cache" in _settings(self.model) else {}
        given = self._tokens(self.read), self._mask(self.read)
        with self.watch.during("forward"):
            self.model(input_ids=given[0], attention_mask=given[1], **asked)

    def _write(self) -> None:
        job, takes = self.job, _settings(self.model)
        ids_BT, mask_BT = self._tokens(self.read), self._mask(self.read)
        asked: dict[str, Any] = {"use_cache": True, "attention_mask": mask_BT}
        if "logits_to_keep" in takes:
            asked["logits_to_keep"] = 1
        name = next(filter(takes.__contains__, _PASSED_AS), None)
        if name is not None and self.model._supports_default_dynamic_cache():
            asked[name] = self.cache = self._cache()
        writes = job.model.task == SEQ2SEQ
        given = {"input_ids": ids_BT} | ({"decoder_input_ids": self._tokens(1)} if writes else {})
        with self.watch.during("prefill"):
            made = self.model(**given, **asked)
            self._keep(made)
            self._choose(made)
        kept = {one: made[one] for one in (*_PASSED_AS, "encoder_outputs") if one in made}
        if writes:
            from transformers.modeling_outputs import BaseModelOutput

            kept["encoder_outputs"] = BaseModelOutput(last_hidden_state=made.encoder_last_hidden_state)
        asked |= kept
        del made, kept, given
        with self.watch.during("decode"):
            unread = self._lengthen()  # noqa: F841 - what would be held
            if not writes:
                asked["attention_mask"] = self._mask(job.context + 1)
            made = self.model(**{"decoder_input_ids" if writes else "input_ids": self._tokens(1)}, **asked)
            self._keep(made)
            self._choose(made)

    def _cache(self) -> Cache:
        """The cache that `generate` makes, whose tensors are told apart as layers keep them."""
        config = self.model.config.get_text_config(decoder=True)
        made = DynamicCache(config=config)
        _label(made, self.stage.tracking)
        if not self.model.config.is_encoder_decoder:
            return made
        crossed = DynamicCache(config=config)
        _label(crossed, self.stage.tracking)
        return EncoderDecoderCache(made, crossed)

    def _keep(self, made: Any) -> None:
        """What a model keeps in a cache of its own kind."""
        for name in _PASSED_AS:
            if name in made and made[name] is not self.cache:
                for tensor in _tensors(made[name]):
                    self.stage.tracking.belongs(tensor, _STATE)

    def _lengthen(self) -> Tensor:
        """Makes keys and values those of the whole context, where it was not followed to its end, and gives the tokens
        that were not read and their mask.
        """
        missing = self.job.context - self.read
        for layer in self.cache.layers if missing and isinstance(self.cache, Cache) else ():
            if isinstance(getattr(layer, "keys", None), Tensor):
                for name in ("keys", "values"):
                    rows, heads, _, width = getattr(layer, name).shape
                    long = getattr(layer, name).new_empty(rows, heads, self.job.context, width)
                    self.stage.tracking.belongs(long, _KEPT)
                    setattr(layer, name, long)
        return self._tokens(2 * missing)

    def _choose(self, made: Any) -> None:
        """The next token, the likeliest."""
        made.logits[:, -1].to(copy=True, dtype=torch.float32).argmax(-1)

    def _tokens(self, length: int) -> Tensor:
        return torch.zeros(self.rows, length, dtype=torch.long)

    def _mask(self, length: int) -> Tensor:
        return torch.ones(self.rows, length, dtype=torch.long)


def _frozen(model: PreTrainedModel) -> PreTrainedModel:
    return model.eval().requires_grad_(False)


def _settings(model: PreTrainedModel) -> Sequence[str]:
    """What a model's forward pass takes."""
    return tuple(inspect.signature(model.forward).parameters)


def _label(cache: Cache, tracking: Tracking) -> None:
    """From now on, what layers put into a cache is told apart."""
    for name, (place, component, attributes) in _UPDATES.items():
        if (method := getattr(cache, name, None)) is not None:
            setattr(cache, name, _labelled(cache, method, place, component, attributes, tracking))


def _labelled(
    cache: Cache, method: Callable[..., Any], place: int, component: str, attributes: Sequence[str], tracking: Tracking
) -> Callable[..., Any]:
    def update(*args: Any, **settings: Any) -> Any:
        before, tracking.component = tracking.component, component
        made = method(*args, **settings)
        tracking.component = before
        layer = cache.layers[args[place] if len(args) > place else settings["layer_idx"]]
        for tensor in _tensors([getattr(layer, name, None) for name in attributes]):
            tracking.belongs(tensor, component)
        return made

    return update


def _tensors(kept: Any) -> Iterator[Tensor]:
    """Those in an object, and in its lists and tables."""
    if isinstance(kept, Tensor):
        yield kept
    elif isinstance(kept, dict):
        for one in kept.values():
            yield from _tensors(one)
    elif isinstance(kept, list | tuple):
        for one in kept:
            yield from _tensors(one)
    elif hasattr(kept, "__dict__"):
        yield from _tensors(vars(kept))


def _as_held(moment: Moment, job: InferenceJob) -> Moment:
    """With keys and values in the dtype that they are kept in, and weights as they are stored."""
    return replace(moment, held=as_kept(moment.held, job.model.stored_bytes, job.cache_dtype))


def as_kept(
    held: Mapping[tuple[str, str], int], stored_bytes: int | None, cache_dtype: str | None
) -> dict[tuple[str, str], int]:
    """What is held where weights are read as they are stored, and keys and values are kept in a dtype of their own."""
    made: dict[tuple[str, str], int] = {}
    for (component, dtype), size_bytes in held.items():
        if component == _KEPT and cache_dtype is not None:
            size_bytes, dtype = round(size_bytes * value_bytes(cache_dtype) / value_bytes(dtype)), cache_dtype
        if component != _WEIGHTS or stored_bytes is None:
            key = _KEPT if component == _STATE else component, dtype
            made[key] = made.get(key, 0) + size_bytes
    if stored_bytes is not None:
        made[_WEIGHTS, AS_STORED] = stored_bytes
    return made
