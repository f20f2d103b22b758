"""A stack machine for the pickles inside weight files, which runs nothing from them.

A pickle is a program; Python's own machine imports and calls whatever the program names. The one here knows tensors,
plain containers and numbers: names outside a fixed table are refused, calls go to the functions of that table alone,
and no attribute of a real object can be set or looked up.
"""

from __future__ import annotations

import pickletools
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from gsclip_jax.runtime.keys import WeightsError, plain

COPIED = 1 << 20  # elements that the calls of one pickle may copy: a few bytes can ask again and again for a copy of a long list
INSTRUCTIONS = 5_000_000  # of one pickle; those of the largest weights have a hundredth of it, and each may fill 100 bytes
LARGEST_VIEW = 2**31  # elements; an expanded view (stride 0) may not grow beyond it

DTYPES = {name: np.dtype(kind) for name, kind in {
    "float64": "f8", "float32": "f4", "float16": "f2", "bfloat16": ml_dtypes.bfloat16, "int64": "i8", "int32": "i4",
    "int16": "i2", "int8": "i1", "uint8": "u1", "uint16": "u2", "uint32": "u4", "uint64": "u8", "bool": "?"}.items()}
STORAGES = {"Double": "float64", "Float": "float32", "Half": "float16", "BFloat16": "bfloat16", "Long": "int64",
            "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8", "Bool": "bool", "Untyped": "uint8"}


class UnsafePickle(WeightsError):
    """The file asks for something other than tensors and plain containers; nothing of it was run."""


@dataclass(eq=False)
class Storage:
    """A flat run of numbers in the file; `read` gives its bytes (little- or big-endian as the file says)."""

    read: Callable[[], Any]
    dtype: np.dtype
    numel: int
    big_endian: bool
    where: str
    start: int = 0  # elements; legacy files can name a part of another storage
    _bytes: np.ndarray | None = None

    def values(self, dtype: np.dtype) -> np.ndarray:
        """All elements as `dtype` (of the same bytes), native byte order. WeightsError when the file holds fewer."""
        if self._bytes is None:
            raw = np.frombuffer(self.read(), np.uint8)
            if raw.size < self.numel * self.dtype.itemsize:
                raise WeightsError(f"{self.where}: {raw.size} bytes instead of {self.numel * self.dtype.itemsize}; "
                                   "the file is truncated, fetch it again")
            self._bytes = raw
        raw = self._bytes[: self._bytes.size // dtype.itemsize * dtype.itemsize]
        if self.big_endian and dtype.itemsize > 1:
            raw = raw.view(f">u{dtype.itemsize}").astype(f"=u{dtype.itemsize}")
        return raw.view(dtype)


@dataclass(frozen=True, eq=False)
class Tensor:
    """A view of a storage: shape and strides in elements, as torch has them; read by `array()`."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        """The values, contiguous in C order, in native byte order, of the stored dtype."""
        flat = self.storage.values(self.dtype)[self.storage.start + self.offset:]
        steps = tuple(stride * self.dtype.itemsize for stride in self.strides)
        return np.ascontiguousarray(np.lib.stride_tricks.as_strided(flat, self.shape, steps)).reshape(self.shape)


@dataclass(eq=False)
class Module:
    """A TorchScript object, stripped to the name of its class and its attributes."""

    name: str
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class _NumpyType:
    code: str
    order: str = "<"


@dataclass(frozen=True, eq=False)
class _Global:
    """A name of the table: what calling it does (`call`), or what it stands for (`value`)."""

    name: str
    call: Callable[..., Any] | None = None
    value: Any = None


# --- the machine -----------------------------------------------------------------------------------------------------


class Machine:
    """Runs one pickle after another. `persistent(kind, key, numel, view)` gives the storage a pickle refers to."""

    def __init__(self, path: Path, persistent: Callable[..., Storage], script: bool) -> None:
        self.path, self.persistent, self.script = path, persistent, script

    def run(self, stream: Any) -> Any:
        """Value of the next pickle in `stream`, which is left after it."""
        stack: list[Any] = []
        marks: list[int] = []
        memo: dict[int, Any] = {}
        self.copied = 0
        try:
            for number, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
                name = opcode.name
                if number > INSTRUCTIONS:
                    raise ValueError("too many instructions")
                if name == "STOP":
                    return stack.pop()
                self._step(name, argument, stack, marks, memo)
        except WeightsError:
            raise
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, MemoryError, RecursionError,
                SyntaxError) as error:
            told = f"{type(error).__name__}: {plain(error, 200)}"
            raise WeightsError(f"{self.path}: damaged pickle ({told}); fetch it again") from error
        raise WeightsError(f"{self.path}: damaged pickle (it does not end); fetch the file again")

    def _step(self, name: str, argument: Any, stack: list[Any], marks: list[int], memo: dict[int, Any]) -> None:
        def items() -> list[Any]:
            start = marks.pop()
            taken = stack[start:]
            del stack[start:]
            return taken

        if name in _PUSH:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in ("PROTO", "FRAME"):
            pass
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[int(argument)] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            stack.append(memo[int(argument)])
        elif name == "MARK":
            marks.append(len(stack))
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            items()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "TUPLE":
            stack.append(tuple(items()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            if len(stack) < count:
                raise IndexError("empty stack")
            stack[-count:] = [tuple(stack[-count:])]
        elif name == "LIST":
            stack.append(items())
        elif name in ("APPEND", "APPENDS"):
            new = [stack.pop()] if name == "APPEND" else items()
            _expect(stack[-1], list).extend(new)
        elif name in ("DICT", "SETITEM", "SETITEMS"):
            if name == "SETITEM":
                new = [stack.pop(-2), stack.pop()]
            else:
                new = items()
            if name == "DICT":
                stack.append({})
            _expect(stack[-1], dict).update(zip(map(_key, new[::2]), new[1::2], strict=True))
        elif name in ("ADDITEMS", "FROZENSET"):
            new = items()
            if name == "FROZENSET":
                stack.append(frozenset(map(_key, new)))
            else:
                _expect(stack[-1], set).update(map(_key, new))
        elif name == "GLOBAL":
            module, _, attribute = argument.partition(" ")
            stack.append(self._global(module, attribute))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(self._global(module, attribute))
        elif name == "REDUCE":
            arguments, function = _expect(stack.pop(), tuple), stack.pop()
            if not isinstance(function, _Global) or function.call is None:
                raise UnsafePickle(self._refusal(f"to call {_named(function)}"))
            self.copied += len(arguments) + sum(len(a) for a in arguments if isinstance(a, list | tuple | dict | str | bytes))
            if self.copied > COPIED:
                raise ValueError("too much copied")
            stack.append(function.call(*arguments))
        elif name == "NEWOBJ":
            arguments, kind = _expect(stack.pop(), tuple), stack.pop()
            if not isinstance(kind, _Global) or kind.value is not Module or arguments:
                raise UnsafePickle(self._refusal(f"to make an object of {_named(kind)}"))
            stack.append(Module(kind.name))
        elif name == "BUILD":
            self._build(stack.pop(), stack[-1])
        elif name == "BINPERSID":
            tag, kind, key, _, numel, *view = _expect(stack.pop(), tuple)
            if tag != "storage" or not isinstance(kind, _Global) or not isinstance(kind.value, np.dtype):
                raise UnsafePickle(self._refusal(f"for a {reprlib.repr(tag)} of {_named(kind)}"))
            if not isinstance(key, str) or not isinstance(numel, int) or numel < 0:
                raise ValueError("storage without key or size")
            stack.append(self.persistent(kind, key, numel, view[0] if view else None))
        else:  # INST, OBJ, NEWOBJ_EX, EXT1.., PERSID: never written for weights
            named = f" for '{'.'.join(argument.split(' '))}'" if name == "INST" else ""
            raise UnsafePickle(self._refusal(f"for the instruction {name}{named}"))

    def _global(self, module: Any, name: Any) -> _Global:
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a name that is not text")
        if self.script and (module == "__torch__" or module.startswith("__torch__.")):
            return _Global(f"{module}.{name}", value=Module)
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise UnsafePickle(self._refusal(f"for '{module}.{name}'")) from None

    def _build(self, state: Any, target: Any) -> None:
        if isinstance(target, Module):
            if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
                raise WeightsError(f"{self.path}: the TorchScript class {target.name} keeps a state of its own "
                                   "(quantised?); save the plain state_dict with torch.save")
            target.attributes.update(state)
        elif isinstance(target, _NumpyType):
            order = _expect(_expect(state, tuple)[1], str)
            target.order = {"<": "<", ">": ">", "|": "|", "=": "<"}[order]
        elif not isinstance(target, dict) or not isinstance(state, dict):  # a dict's own: `_metadata` of a state_dict
            raise UnsafePickle(self._refusal(f"to set the state of {_named(target)}"))

    def _refusal(self, what: str) -> str:
        return (f"{self.path}: refused, the file asks {plain(what, 200)}, which is not part of weights; nothing was run. "
                "Use a file that holds a state_dict alone")


_PUSH = frozenset({"INT", "LONG", "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING",
                   "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
                   "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"})
_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_TUPLE": tuple, "EMPTY_LIST": list,
    "EMPTY_DICT": dict, "EMPTY_SET": set}


def _expect(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"a {type(value).__name__} where a {getattr(kind, '__name__', kind)} belongs")
    return value


def _key(value: Any) -> Any:
    """A key of a dict or set: hashing tuples of tuples without end overruns the C stack."""
    if isinstance(value, tuple | frozenset) and any(isinstance(part, tuple | frozenset) for part in value):
        raise TypeError("a key of nested containers")
    return value


def _named(value: Any) -> str:
    return f"'{value.name}'" if isinstance(value, _Global | Module) else f"a {type(value).__name__}"


# --- the table of names ----------------------------------------------------------------------------------------------


def _tensor(storage: Storage, offset: int, shape: tuple, strides: tuple, *rest: Any,
            dtype: np.dtype | None = None) -> Tensor:
    dtype = dtype or _expect(storage, Storage).dtype
    numbers = (offset, *_expect(shape, tuple), *_expect(strides, tuple))
    if len(shape) != len(strides) or len(shape) > 32 or not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
        raise ValueError("a tensor of impossible shape or strides")
    count = 1
    for length in shape:
        count *= length
    room = storage.numel * storage.dtype.itemsize // dtype.itemsize
    last = storage.start + offset + sum((length - 1) * stride for length, stride in zip(shape, strides))
    if count and (last >= room or count > LARGEST_VIEW):
        raise ValueError(f"a tensor of shape {shape} reaches outside its storage")
    return Tensor(storage, dtype, offset if count else 0, tuple(shape), tuple(strides))


def _tensor_v3(storage, offset, shape, strides, grad, hooks, dtype, *rest) -> Tensor:
    return _tensor(storage, offset, shape, strides, dtype=_expect(_expect(dtype, _Global).value, np.dtype))


def _numpy_type(code: str, *rest: Any) -> _NumpyType:
    if not isinstance(code, str) or np.dtype(code).kind not in "fiub":
        raise ValueError("a numpy type that is not a number")
    return _NumpyType(code)


def _numpy_scalar(kind: _NumpyType, data: bytes) -> Any:
    dtype = np.dtype(_expect(kind, _NumpyType).code).newbyteorder(kind.order)
    return np.frombuffer(_expect(data, bytes), dtype, 1)[0].item()


def _encoded(text: str, codec: str = "latin1") -> bytes:
    if codec not in ("latin1", "latin-1"):
        raise ValueError("bytes in an unknown coding")
    return _expect(text, str).encode("latin1")


def _mapping(*arguments: Any) -> dict[Any, Any]:
    """A dict, or one of [key, value] pairs."""
    if len(arguments) > 1:
        raise TypeError("a dict of two things")
    pairs = _expect(arguments[0], list | dict) if arguments else {}
    pairs = pairs.items() if isinstance(pairs, dict) else [_expect(pair, list | tuple) for pair in pairs]
    return {_key(key): value for key, value in pairs}


def _set(values: Any = ()) -> set[Any]:
    return set(map(_key, _expect(values, list | tuple)))


def _table() -> dict[tuple[str, str], _Global]:
    calls: dict[str, Callable[..., Any]] = {
        "collections.OrderedDict": _mapping, "collections.Counter": _mapping,
        "torch._utils._rebuild_tensor": _tensor, "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_tensor_v3": _tensor_v3,
        "torch._utils._rebuild_parameter": lambda data, *rest: _expect(data, Tensor),
        "torch._utils._rebuild_parameter_with_state": lambda data, *rest: _expect(data, Tensor),
        "torch.Size": lambda lengths=(): tuple(_expect(lengths, list | tuple)),
        "torch.device": lambda *place: ":".join(str(_expect(part, str | int)) for part in place),
        "torch.jit._pickle.restore_type_tag": lambda value, tag: value,
        "numpy.dtype": _numpy_type, "numpy.core.multiarray.scalar": _numpy_scalar,
        "numpy._core.multiarray.scalar": _numpy_scalar, "_codecs.encode": _encoded,
        "builtins.set": _set, "__builtin__.set": _set,
    }
    calls |= {f"torch.jit._pickle.build_{kind}list": lambda values: list(_expect(values, list | tuple))
              for kind in ("int", "double", "bool", "tensor")}
    values: dict[str, Any] = {f"torch.{name}": dtype for name, dtype in DTYPES.items()}
    for kind, dtype in STORAGES.items():
        for module in ("torch", "torch.storage", "torch.cuda"):
            values[f"{module}.{kind}Storage"] = DTYPES[dtype]
    table = [_Global(name, call=call) for name, call in calls.items()]
    table += [_Global(name, value=value) for name, value in values.items()]
    return {tuple(entry.name.rsplit(".", 1)): entry for entry in table}


ALLOWED = _table()
