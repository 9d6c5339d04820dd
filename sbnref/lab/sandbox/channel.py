"""Messages between the grader and the submitted code: numbers and tensors, nothing executable.

A message is the lengths of its two parts, a text of JSON, and the bytes of the tensors that the text describes. Every
message is validated, because the other end may send anything.
"""

from __future__ import annotations

import ctypes
import json
import math
import socket
import struct
import time
from typing import Any

import torch
from torch import Tensor

MOST_TEXT = 1 << 20  # bytes
MOST_DATA = 1 << 26  # bytes of tensors in a message; a larger tensor is described without its bytes
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
        *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
    )
}
_LENGTHS = struct.Struct("<II")


class Closed(Exception):
    """The other end of the connection is closed."""


class Garbage(Exception):
    """The bytes received are not a message."""


def send(to: socket.socket, message: dict[str, Any], seconds: float | None = None) -> None:
    """Send a message of dictionaries, lists, tuples, numbers, strings and tensors. Of any other value, send its type.

    Raises:
        OSError: the other end did not read it in time.
    """
    data: list[bytes] = []
    text = json.dumps(_describe(message, data)).encode()
    to.settimeout(seconds)
    to.sendall(_LENGTHS.pack(len(text), sum(map(len, data))) + text + b"".join(data))


def receive(of: socket.socket, seconds: float | None = None) -> dict[str, Any]:
    """Return the next message.

    Raises:
        TimeoutError: none came within ``seconds``.
        Closed: the other end was closed first.
        Garbage: the bytes received are not a message.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    text_length, data_length = _LENGTHS.unpack(_read(of, _LENGTHS.size, deadline))
    if text_length > MOST_TEXT or data_length > MOST_DATA:
        raise Garbage(f"a message of {text_length} + {data_length} bytes")
    text, data = _read(of, text_length, deadline), _read(of, data_length, deadline)
    try:
        return dict(_restore(json.loads(text), memoryview(data)))
    except Exception as error:  # the other end may have sent anything
        raise Garbage(f"a message that cannot be read: {type(error).__name__}") from error


def _read(of: socket.socket, count: int, deadline: float | None) -> bytearray:
    read = bytearray()
    while len(read) < count:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError
        of.settimeout(left)
        try:
            part = of.recv(min(count - len(read), 1 << 20))
        except ConnectionError:
            part = b""
        if not part:
            raise Closed
        read += part
    return read


def _describe(value: Any, data: list[bytes]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"is": value[:20_000] if isinstance(value, str) else value}
    if isinstance(value, dict):
        return {"dict": [[str(name), _describe(item, data)] for name, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"tuple" if isinstance(value, tuple) else "list": [_describe(item, data) for item in value]}
    if isinstance(value, Tensor) and value.layout == torch.strided and str(value.dtype)[6:] in _DTYPES:
        shape, strides = list(value.shape), list(value.stride())
        size = value.numel() * value.itemsize
        if value.device.type != "cpu" or sum(map(len, data)) + size > MOST_DATA:
            return {"absent": [str(value.dtype)[6:], shape]}
        value = value.detach().resolve_conj().resolve_neg().contiguous()
        data.append(ctypes.string_at(value.data_ptr(), size))
        return {"tensor": [str(value.dtype)[6:], shape, strides]}
    return {"kind": type(value).__name__}


def _restore(described: Any, data: memoryview) -> Any:
    """Return the described value; ``data`` holds its tensors, in order."""
    place = room = 0

    def whole(numbers: Any) -> list[int]:
        known = isinstance(numbers, list) and len(numbers) <= 64
        if not known or not all(type(number) is int and 0 <= number <= MOST_DATA for number in numbers):
            raise ValueError("invalid sizes")
        return list(numbers)

    def restore(described: Any) -> Any:
        nonlocal place, room
        ((how, value),) = described.items()
        if how == "is":
            return value
        if how == "dict":
            return {str(name): restore(item) for name, item in value}
        if how in ("tuple", "list"):
            return (tuple if how == "tuple" else list)(map(restore, value))
        if how == "absent":
            return torch.empty(whole(value[1]), dtype=_DTYPES[value[0]], device="meta")
        if how == "kind":
            return type(str(value)[:50], (), {})()  # an object of a type with that name; nothing else is known
        dtype, shape, strides = _DTYPES[value[0]], whole(value[1]), whole(value[2])
        size = math.prod(shape) * dtype.itemsize
        if size > len(data) - place:
            raise ValueError("a tensor without its bytes")
        flat = torch.frombuffer(bytearray(data[place : place + size]) or bytearray(16), dtype=dtype)
        place += size
        dense = flat[: math.prod(shape)].view(shape)
        span = (sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) + 1) * dtype.itemsize
        if size == 0 or min(strides, default=1) < 1 or room + span > MOST_DATA:
            return dense.clone()
        room += span
        return torch.empty_strided(shape, strides, dtype=dtype).copy_(dense)

    return restore(described)
