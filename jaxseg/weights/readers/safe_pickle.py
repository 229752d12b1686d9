"""An interpreter of pickles that builds plain values and nothing else.

Python's own unpickler imports what a file names and calls it. This one never imports: it walks over the opcodes with
`pickletools.genops`, knows those that build numbers, texts, lists, tuples and dictionaries, and looks up the globals of
a file in a table that its caller gives, whose values are functions of jaxseg. Its work and memory are proportional to
the pickle's length.
"""

import io
import pickletools
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from jaxseg.core.errors import JaxsegError

KEY_TYPES = (str, bytes, int, float, bool, type(None))


class Named:
    """A global that a file may name: `function` stands for it where the file calls it, None where it may not."""

    def __init__(self, name: str, function: Callable[..., Any] | None = None):
        self.name = name
        self.function = function


class Opaque:
    """A value that jaxseg has no use for (a NumPy scalar, a device); what the file says about it is thrown away."""


class ForbiddenPickle(Exception):
    """Something in the pickle that is not built; the text says what."""


def load_pickle(
    file: BinaryIO | bytes, *, names: Mapping[str, Named], persistent: Callable[[Any], Any] | None = None, where: str
) -> Any:
    """Reads one pickle and leaves the file behind its end.

    Args:
      file: opened in binary mode, at the pickle's start; or its bytes.
      names: "module.name" -> what stands for it.
      persistent: what stands for a persistent id (a storage), or None where there are none.
      where: the file and its part, for the messages.

    Returns:
      Numbers, texts, lists, tuples, dictionaries, what the functions in `names` gave, `Opaque`.

    Raises:
      JaxsegError: a global that `names` lacks, an opcode that plain values do not need, or a damaged pickle.
    """
    stream = io.BytesIO(file) if isinstance(file, bytes) else file
    try:
        return _Machine(names, persistent).run(stream)
    except ForbiddenPickle as error:
        raise JaxsegError(
            f"{where} asks for {error}, which jaxseg refuses; nothing was executed. "
            "Save the tensors alone, torch.save(model.state_dict(), ...), or as .safetensors."
        ) from None
    # Memory: a damaged length asks for more than there is.
    except (ValueError, TypeError, LookupError, EOFError, OverflowError, MemoryError) as error:
        raise JaxsegError(f"{where} is damaged or cut off ({type(error).__name__}: {error}).") from error


class _Machine:
    """A pickle's stack, marks and memo; one method a kind of opcode."""

    def __init__(self, names: Mapping[str, Named], persistent: Callable[[Any], Any] | None):
        self.names = names
        self.persistent = persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: BinaryIO) -> Any:
        for opcode, argument, _ in pickletools.genops(stream):
            name = opcode.name
            if name == "STOP":
                return self.stack.pop()
            if name in _LITERALS:
                self.stack.append(argument)
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name]())
            elif name in _ACTIONS:
                _ACTIONS[name](self, argument)
            elif name not in _WITHOUT_EFFECT:
                raise ForbiddenPickle(f"the pickle operation {name}")
        raise EOFError("the pickle has no end")

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError("the pickle's stack is empty")
        items = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return items

    def mark(self, argument: Any) -> None:
        self.marks.append(len(self.stack))

    def put(self, argument: Any) -> None:
        self.memo[len(self.memo) if argument is None else int(argument)] = self.stack[-1]

    def get(self, argument: Any) -> None:
        self.stack.append(self.memo[int(argument)])

    def duplicate(self, argument: Any) -> None:
        self.stack.append(self.stack[-1])

    def drop(self, argument: Any) -> None:
        # As in pickle: POP right after a mark takes the mark away.
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.stack.pop()

    def drop_since_mark(self, argument: Any) -> None:
        self.since_mark()

    def name(self, argument: Any) -> None:
        parts = argument.split(" ", 1) if argument is not None else self.pop(2)
        if not all(isinstance(part, str) for part in parts):
            raise ForbiddenPickle("a global whose name is no text")
        path = ".".join(parts)
        if path not in self.names:
            raise ForbiddenPickle(f"the global {path}")
        self.stack.append(self.names[path])

    def call(self, argument: Any) -> None:
        function, arguments = self.pop(2)
        if not isinstance(function, Named) or function.function is None or not isinstance(arguments, tuple):
            raise ForbiddenPickle(f"a call of {getattr(function, 'name', type(function).__name__)}")
        self.stack.append(function.function(*arguments))

    def build(self, argument: Any) -> None:
        # State such as an ordered dictionary's `_metadata` or a NumPy dtype's: of no use here.
        target, _ = self.pop(2)
        if not isinstance(target, dict | Opaque):
            raise ForbiddenPickle(f"a change of {getattr(target, 'name', type(target).__name__)}")
        self.stack.append(target)

    def persistent_id(self, argument: Any) -> None:
        (identity,) = self.pop(1)
        if self.persistent is None:
            raise ForbiddenPickle("a persistent object")
        self.stack.append(self.persistent(identity))

    def extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise ForbiddenPickle(f"an append to {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(items)

    def update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise ForbiddenPickle(f"an item of {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # No tuples: nested ones can take longer to hash than the universe lasts.
            if not isinstance(key, KEY_TYPES):
                raise ForbiddenPickle(f"a dictionary key of type {type(key).__name__}")
            target[key] = value


def _push(build: Callable[[list[Any]], Any], count: int | None = None) -> Callable[[_Machine, Any], None]:
    """Takes `count` values, or those since the mark, and pushes what `build` makes of them."""

    def action(machine: _Machine, argument: Any) -> None:
        machine.stack.append(build(machine.since_mark() if count is None else machine.pop(count)))

    return action


def _pairs(machine: _Machine, argument: Any) -> None:
    items = machine.since_mark()
    machine.stack.append({})
    machine.update(items)


_LITERALS = frozenset(
    "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8".split()
)
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": Opaque,
}
_WITHOUT_EFFECT = frozenset(("PROTO", "FRAME"))
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.put,
    "GET": _Machine.get,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "DUP": _Machine.duplicate,
    "POP": _Machine.drop,
    "POP_MARK": _Machine.drop_since_mark,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent_id,
    "TUPLE": _push(tuple),
    "TUPLE1": _push(tuple, 1),
    "TUPLE2": _push(tuple, 2),
    "TUPLE3": _push(tuple, 3),
    "LIST": _push(list),
    "DICT": _pairs,
    "APPEND": lambda machine, argument: machine.extend(machine.pop(1)),
    "APPENDS": lambda machine, argument: machine.extend(machine.since_mark()),
    "SETITEM": lambda machine, argument: machine.update(machine.pop(2)),
    "SETITEMS": lambda machine, argument: machine.update(machine.since_mark()),
    "ADDITEMS": _Machine.drop_since_mark,
}
