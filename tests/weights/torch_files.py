"""Writes PyTorch's two file formats without PyTorch, and with whatever faults a test wants."""

import dataclasses
import pickle
import struct
import zipfile
from typing import Any

import numpy as np

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
KINDS = {"f4": "Float", "f8": "Double", "f2": "Half", "i8": "Long", "i4": "Int", "u1": "Byte", "b1": "Bool"}


@dataclasses.dataclass
class Global:
    """`module.name` as a pickle names it."""

    module: str
    name: str


@dataclasses.dataclass
class Call:
    """A function of a module, called by the unpickler."""

    function: Global
    arguments: tuple
    state: Any = None


@dataclasses.dataclass
class Persistent:
    """A persistent id."""

    identity: tuple


def encode(value):
    """One value in pickle protocol 2."""
    match value:
        case Global():
            return b"c" + f"{value.module}\n{value.name}\n".encode()
        case Call():
            built = encode(value.function) + encode(value.arguments) + b"R"
            return built if value.state is None else built + encode(value.state) + b"b"
        case Persistent():
            return encode(value.identity) + b"Q"
        case tuple():
            return b"(" + b"".join(map(encode, value)) + b"t"
        case dict():
            return b"}(" + b"".join(encode(k) + encode(v) for k, v in value.items()) + b"u"
        case list():
            return b"](" + b"".join(map(encode, value)) + b"e"
    return pickle.dumps(value, protocol=2)[2:-1]


def pickled(value):
    """A whole pickle."""
    return b"\x80\x02" + encode(value) + b"."


def tensor(key, array, *, kind=None, offset=0, shape=None, strides=None, size=None, view=()):
    """What stands for a tensor whose storage `key` holds the values of `array`."""
    kind = kind or KINDS[array.dtype.str[1:]]
    shape = array.shape if shape is None else shape
    if strides is None:
        strides = tuple(int(np.prod(shape[i + 1 :], dtype=int)) for i in range(len(shape)))
    size = array.size if size is None else size
    identity = ("storage", Global("torch", f"{kind}Storage"), key, "cpu", size, *view)
    arguments = (Persistent(identity), offset, tuple(shape), tuple(strides), False, ordered({}))
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), arguments)


def ordered(items):
    """An OrderedDict with the `_metadata` that state_dict() gives it."""
    return Call(Global("collections", "OrderedDict"), (), {"_metadata": dict.fromkeys(items)} if items else None)


def write_zip(path, root, storages, *, order="little", compression=zipfile.ZIP_STORED, extra=(), data=None):
    """The format since 1.6. `storages`: key -> bytes."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled(root) if data is None else data)
        if order is not None:
            archive.writestr("archive/byteorder", order)
        for key, content in storages.items():
            archive.writestr(f"archive/data/{key}", content)
        for name, content in extra:
            archive.writestr(name, content)
    return path


def write_legacy(path, root, storages, *, little_endian=True, protocol=PROTOCOL, data=None):
    """The format before. `storages`: key -> (number of values, bytes), in the order of the file."""
    machine = {"protocol_version": protocol, "little_endian": little_endian, "type_sizes": {"short": 2}}
    parts = [pickled(MAGIC), pickled(protocol), pickled(machine), pickled(root) if data is None else data]
    parts.append(pickled(list(storages)))
    parts += [struct.pack("<q", size) + content for size, content in storages.values()]
    path.write_bytes(b"".join(parts))
    return path
