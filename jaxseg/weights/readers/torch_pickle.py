"""What PyTorch's pickles name: storages, dtypes, the functions that rebuild a tensor; and the state dict inside."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from jaxseg.core.errors import JaxsegError
from jaxseg.weights.readers.safe_pickle import Named, Opaque
from jaxseg.weights.readers.tensors import DTYPES, Storage, Tensor

STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params")
"""Keys below which training scripts keep the state dict, the likeliest first."""
PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""
MAX_DEPTH = 32
MAX_ENTRIES = 1_000_000


def _rebuild_tensor(storage: Storage, offset: int, shape: tuple, strides: tuple, *_: Any) -> Tensor:
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise ValueError("a tensor without storage, shape or strides")
    return Tensor(storage, offset, shape, strides)


def _rebuild_with_dtype(
    storage: Storage, offset: int, shape: tuple, strides: tuple, grad: bool, hooks: Any, dtype: Named, *_: Any
) -> Tensor:
    """Tensors of the dtypes that have no storage class of their own lie in storages of bytes."""
    name = dtype.name.removeprefix("torch.")
    itemsize = np.dtype(DTYPES[name]).itemsize
    if storage.size % itemsize:
        raise ValueError(f"{storage.size} bytes are no whole number of {name}")
    return _rebuild_tensor(Storage(storage.key, name, storage.size // itemsize), offset, shape, strides)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _typed(function: Named, kind: Any, arguments: tuple, state: Any) -> Any:
    if function.name not in REBUILD or function.function is None:
        raise ValueError(f"a tensor rebuilt by {function.name}")
    return function.function(*arguments)


def _dictionary(*arguments: Any) -> dict:
    return {key: value for key, value in arguments[0]} if arguments else {}


def _opaque(*_: Any) -> Opaque:
    return Opaque()


REBUILD: dict[str, Callable[..., Any] | None] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_with_dtype,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _typed,
}
OTHERS: dict[str, Callable[..., Any] | None] = {
    "collections.OrderedDict": _dictionary,
    "torch.Size": tuple,
    "torch.device": _opaque,
    "torch.Tensor": None,
    "torch.nn.parameter.Parameter": None,
    # NumPy numbers beside the weights, such as the best score: never used, never built.
    "numpy.dtype": _opaque,
    "numpy.core.multiarray.scalar": _opaque,
    "numpy._core.multiarray.scalar": _opaque,
    "_codecs.encode": _opaque,
}


def _storage_types() -> dict[str, str]:
    types = {"torch.storage.UntypedStorage": "uint8"}
    for name, dtype in STORAGES.items():
        types |= {f"torch.{name}": dtype, f"torch.cuda.{name}": dtype}
    return types


STORAGE_TYPES = _storage_types()
NAMES: Mapping[str, Named] = {
    name: Named(name, function)
    for name, function in (
        REBUILD | OTHERS | dict.fromkeys(STORAGE_TYPES) | dict.fromkeys(f"torch.{dtype}" for dtype in DTYPES)
    ).items()
}
"""Every global that a PyTorch file may name."""


def storage_of(identity: Any) -> tuple[Storage, Any]:
    """The storage that a persistent id `("storage", type, key, location, size[, view])` names, and the view.

    Raises:
      ValueError: another kind of id.
    """
    if not isinstance(identity, tuple) or len(identity) not in (5, 6) or identity[0] != "storage":
        raise ValueError("a persistent id that is no storage")
    _, kind, key, _, size, *view = identity
    if not isinstance(kind, Named) or kind.name not in STORAGE_TYPES:
        raise ValueError(f"a storage of the type {getattr(kind, 'name', type(kind).__name__)}")
    if not isinstance(key, str) or type(size) is not int or size < 0:
        raise ValueError("a storage without key or size")
    return Storage(key, STORAGE_TYPES[kind.name], size), view[0] if view else None


def state_dict(root: Any, *, path: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, prefixes of wrappers cut off.

    Raises:
      JaxsegError: there are none, or several dictionaries hold some and none of them is called as in `WRAPPERS`.
    """
    budget = iter(range(MAX_ENTRIES))
    try:
        while (inner := _inner(root, budget, path)) is not None:
            root = inner
        tensors = dict(_tensors(root, "", 0, budget))
    except (StopIteration, RuntimeError) as error:
        raise JaxsegError(f"{path} nests more than {MAX_ENTRIES:,} entries. It is not read.") from error
    if not tensors:
        raise JaxsegError(f"{path} holds no named tensors, but a {type(root).__name__}.")
    for prefix in PREFIXES * 2:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _inner(root: Any, budget: Iterator[int], path: str) -> Any:
    """The dictionary below `root` that holds the network's tensors; None where it is `root` itself."""
    if not isinstance(root, dict):
        return None
    holders = {k: v for k, v in root.items() if isinstance(v, dict) and any(True for _ in _tensors(v, "", 0, budget))}
    named = [key for key in WRAPPERS if key in holders]
    if named:
        return holders[named[0]]
    if not holders or any(isinstance(value, Tensor) for value in root.values()):
        return None
    if len(holders) > 1:
        raise JaxsegError(
            f"{path} holds several sets of tensors: {', '.join(map(str, list(holders)[:10]))}. "
            "Save the one that you want alone."
        )
    return next(iter(holders.values()))


def _tensors(value: Any, name: str, depth: int, budget: Iterator[int]) -> Iterator[tuple[str, Tensor]]:
    """The tensors below a value. The budget ends what refers to itself, or to one thing over and over."""
    next(budget)
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict) and depth < MAX_DEPTH:
        for key, item in value.items():
            yield from _tensors(item, f"{name}.{key}" if name else str(key), depth + 1, budget)


def arrays_of(
    tensors: Mapping[str, Tensor], values_of: Callable[[Storage], np.ndarray], *, path: str
) -> dict[str, np.ndarray]:
    """Each tensor as an array; tensors of one storage share its memory.

    Args:
      tensors: name -> tensor.
      values_of: gives a storage's values as a flat array.
      path: for the message.

    Raises:
      JaxsegError: a tensor reaches beyond its storage.
    """
    values: dict[tuple[str, str], np.ndarray] = {}
    arrays = {}
    for name, tensor in tensors.items():
        place = (tensor.storage.key, tensor.storage.dtype)
        if place not in values:
            values[place] = values_of(tensor.storage)
        try:
            arrays[name] = tensor.of(values[place])
        except ValueError as error:
            raise JaxsegError(f"{path}: the tensor {name} does not lie in its storage: {error}.") from None
    return arrays
