"""Readers: values, layouts and names of every kind of file, told apart by content; and every refusal of bad ones."""

import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import safetensors.numpy

from jaxseg.core.errors import JaxsegError
from jaxseg.weights.readers import npz, read_arrays, torch_pickle
from tests.weights.torch_files import Call, Global, ordered, pickled, tensor, write_legacy, write_zip

A = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
B = np.asarray([1.5, -2.0], np.float64)


def write(form, path, root, arrays, **options):
    """`root` with the storages of `arrays`, in either format."""
    if form == "zip":
        return write_zip(path, root, {k: a.tobytes() for k, a in arrays.items()}, **options)
    return write_legacy(path, root, {k: (a.size, a.tobytes()) for k, a in arrays.items()}, **options)


BOTH = pytest.mark.parametrize("form", ["zip", "legacy"])


@BOTH
def test_values_layouts_and_shared_storages(form, tmp_path):
    root = {
        "a.weight": tensor("0", A),
        "a.turned": tensor("0", A, shape=(4, 2), strides=(1, 12)),
        "a.slice": tensor("0", A, offset=5, shape=(3,), strides=(2,)),
        "b.bias": tensor("1", B),
        "steps": 7,
        "none": tensor("1", B, shape=(0, 3)),
        "scalar": tensor("1", B, offset=1, shape=()),
    }
    arrays = read_arrays(write(form, tmp_path / "w.anything", root, {"0": A, "1": B}))
    assert list(arrays) == ["a.weight", "a.turned", "a.slice", "b.bias", "none", "scalar"]
    np.testing.assert_array_equal(arrays["a.weight"], A)
    np.testing.assert_array_equal(arrays["a.turned"], A[:, 0, :].T)
    np.testing.assert_array_equal(arrays["a.slice"], [5, 7, 9])
    np.testing.assert_array_equal(arrays["b.bias"], B)
    assert arrays["none"].shape == (0, 3) and arrays["scalar"].shape == () and arrays["scalar"] == -2
    assert arrays["a.weight"].dtype == np.float32 and arrays["b.bias"].dtype == np.float64


@BOTH
@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "i8", "i4", "u1", "b1"])
def test_dtypes(form, dtype, tmp_path):
    values = np.asarray([0, 1, 1, 0, 1], dtype)
    arrays = read_arrays(write(form, tmp_path / "w.pth", {"x": tensor("0", values)}, {"0": values}))
    assert arrays["x"].dtype == values.dtype
    np.testing.assert_array_equal(arrays["x"], values)


@BOTH
def test_bfloat16_is_widened_exactly(form, tmp_path):
    upper = np.asarray([0x3F80, 0xC000, 0x3FC0, 0x7F80], np.uint16)
    root = {"x": tensor("0", upper, kind="BFloat16")}
    x = read_arrays(write(form, tmp_path / "w.pth", root, {"0": upper}))["x"]
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, [1, -2, 1.5, np.inf])


def test_big_endian_records(tmp_path):
    path = write_zip(tmp_path / "w.pth", {"x": tensor("0", A)}, {"0": A.astype(">f4").tobytes()}, order="big")
    np.testing.assert_array_equal(read_arrays(path)["x"], A)
    path = write_zip(tmp_path / "old.pth", {"x": tensor("0", A)}, {"0": A.tobytes()}, order=None)
    np.testing.assert_array_equal(read_arrays(path)["x"], A)
    path = write_zip(tmp_path / "odd.pth", {"x": tensor("0", A)}, {"0": A.tobytes()}, order="middle")
    with pytest.raises(JaxsegError, match="odd.pth: the byte order is 'middle'"):
        read_arrays(path)


def test_legacy_views_of_a_storage_and_a_big_endian_machine(tmp_path):
    root = {"x": tensor("0", A, view=(("0v", 10, 4),), shape=(2, 2))}
    path = write_legacy(tmp_path / "w.pth", root, {"0": (24, A.tobytes())})
    np.testing.assert_array_equal(read_arrays(path)["x"], [[10, 11], [12, 13]])
    path = write_legacy(tmp_path / "big.pth", root, {"0": (24, A.tobytes())}, little_endian=False)
    with pytest.raises(JaxsegError, match="big-endian machine"):
        read_arrays(path)


@BOTH
def test_a_training_checkpoint_gives_its_state_dict(form, tmp_path):
    x, y = tensor("0", A), tensor("1", B)
    arrays = {"0": A, "1": B}
    scalar = Call(Global("numpy.core.multiarray", "scalar"), (Call(Global("numpy", "dtype"), ("f8", 0, 1), (3, "<")),))
    training = {"epoch": 3, "best": scalar, "best_tensor": y, "state_dict": {"module.w": x}, "optimizer": {"m": y}}
    got = read_arrays(write(form, tmp_path / "w.pth", training, arrays))
    assert list(got) == ["w"]
    got = read_arrays(write(form, tmp_path / "nested.pth", {"model": {"state_dict": {"a": {"b": x}, "c": y}}}, arrays))
    assert list(got) == ["a.b", "c"]
    got = read_arrays(write(form, tmp_path / "one.pth", {"whatever": {"_orig_mod.module.c": x}, "d": 1}, {"0": A}))
    assert list(got) == ["c"]
    path = write(form, tmp_path / "two.pth", {"generator": {"a": x}, "discriminator": {"a": y}}, arrays)
    with pytest.raises(JaxsegError, match="several sets of tensors: generator, discriminator"):
        read_arrays(path)
    with pytest.raises(JaxsegError, match="no named tensors"):
        read_arrays(write(form, tmp_path / "none.pth", {"epoch": 3}, {}))


def test_ordered_dictionaries_and_parameters(tmp_path):
    parameter = Call(Global("torch._utils", "_rebuild_parameter"), (tensor("0", A), True, ordered({})))
    root = pickled(ordered({"": 1}))[:-1] + b"(" + pickled("w")[2:-1] + pickled(parameter)[2:-1] + b"u."
    path = write_zip(tmp_path / "w.pth", None, {"0": A.tobytes()}, data=root)
    np.testing.assert_array_equal(read_arrays(path)["w"], A)


class Harmful:
    """Makes a file when an ordinary unpickler loads it."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@BOTH
@pytest.mark.parametrize("protocol", [2, 4])
def test_code_in_a_pickle_is_named_and_never_run(form, protocol, tmp_path):
    mark = tmp_path / "executed"
    data = pickle.dumps({"state_dict": Harmful(f"touch {mark}")}, protocol=protocol)
    pickle.loads(data)
    assert mark.exists(), "the pickle would not have done harm"
    mark.unlink()
    path = write(form, tmp_path / "w.pth", None, {}, data=data)
    with pytest.raises(JaxsegError, match=r"w.pth.*global (posix|nt)\.system, which jaxseg refuses; nothing was exec"):
        read_arrays(path)
    assert not mark.exists()
    plain = tmp_path / "plain.pkl"
    plain.write_bytes(data)
    with pytest.raises(JaxsegError, match="plain pickle.*Nothing was executed"):
        read_arrays(plain)
    assert not mark.exists()


@pytest.mark.parametrize(
    "root, what",
    [
        (Call(Global("builtins", "eval"), ("1",)), "the global builtins.eval"),
        (Call(Global("torch", "load"), ("x",)), "the global torch.load"),
        (Global("torch.nn.modules.conv", "Conv2d"), r"the global torch\.nn\.modules\.conv\.Conv2d"),
        (Call(Global("torch", "FloatStorage"), (9,)), "a call of torch.FloatStorage"),
        (Call(Global("torch", "Size"), ([1],), {"x": 1}), "a change of tuple"),
        ({(1, 2): 3}, "a dictionary key of type tuple"),
    ],
)
def test_what_else_a_pickle_may_not_ask_for(root, what, tmp_path):
    with pytest.raises(JaxsegError, match=what):
        read_arrays(write_zip(tmp_path / "w.pth", {"state_dict": root}, {}))


@pytest.mark.parametrize(
    "data, what",
    [
        (b"\x80\x02c__builtin__\nobject\n.", r"__builtin__\.object"),
        (b"\x80\x02ccollections\nOrderedDict\n}(X\x01\x00\x00\x00aK\x01ub.", "a change of collections.OrderedDict"),
        (b"\x80\x02\x82\x01.", "operation EXT1"),
        (b"\x80\x02(ios\nsystem\n.", "operation INST"),
        (b"\x80\x02]K\x01K\x02s.", "an item of list"),
        (b"\x80\x04)\x8c\x06system\x93.", "a global whose name is no text"),
        (b"\x80\x02R.", "damaged or cut off"),
        (b"\x80\x02K", "damaged or cut off"),
        (b"\x80\x02K\x01", "damaged or cut off"),
        (b"\x80\x02h\x07.", "damaged or cut off"),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", "damaged or cut off"),
        (b"", "damaged or cut off"),
    ],
)
def test_raw_pickles_that_are_refused(data, what, tmp_path):
    with pytest.raises(JaxsegError, match=what):
        read_arrays(write_zip(tmp_path / "w.pth", None, {}, data=data))


def test_a_length_beyond_all_memory(tmp_path):
    """Only a read from a file asks for it: the bytes of a record are there already."""
    path = write_legacy(tmp_path / "w.pth", None, {}, data=b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b".")
    with pytest.raises(JaxsegError, match="w.pth.*damaged or cut off.*MemoryError"):
        read_arrays(path)


def test_a_dictionary_in_itself_and_one_that_unfolds_without_end(tmp_path, monkeypatch):
    with pytest.raises(JaxsegError, match="no named tensors"):
        read_arrays(write_zip(tmp_path / "self.pth", None, {}, data=b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s."))
    monkeypatch.setattr(torch_pickle, "MAX_ENTRIES", 1000)
    doubled = b"\x80\x02}q\x00" + b"".join(
        b"}(X\x01\x00\x00\x00ah%cX\x01\x00\x00\x00bh%cuq%c" % (i, i, i + 1) for i in range(30)
    )
    with pytest.raises(JaxsegError, match="nests more than 1,000 entries"):
        read_arrays(write_zip(tmp_path / "bomb.pth", None, {}, data=doubled + b"."))


@BOTH
@pytest.mark.parametrize(
    "wrong",
    [
        {"offset": 1},
        {"shape": (2, 3, 5), "strides": (12, 4, 1)},
        {"strides": (12, 4, -1)},
        {"offset": -1},
        {"shape": (2, 3)},
        {"shape": (10**12, 10**12), "strides": (10**9, 0)},
        {"strides": (1, 1)},
    ],
)
def test_tensors_that_reach_beyond_their_storage(form, wrong, tmp_path):
    options = {"shape": (2, 3, 4), "strides": (12, 4, 1)} | wrong
    with pytest.raises(JaxsegError, match="the tensor x does not lie in its storage"):
        read_arrays(write(form, tmp_path / "w.pth", {"x": tensor("0", A, **options)}, {"0": A}))


@BOTH
def test_storages_that_do_not_fit(form, tmp_path):
    with pytest.raises(JaxsegError, match="has 96 of 400 bytes|has 24 values instead of 100"):
        read_arrays(write(form, tmp_path / "short.pth", {"x": tensor("0", A, size=100)}, {"0": A}))
    with pytest.raises(JaxsegError, match="no record 'data/7'|lists other storages"):
        read_arrays(write(form, tmp_path / "absent.pth", {"x": tensor("7", A)}, {"0": A}))
    with pytest.raises(JaxsegError, match="damaged or cut off.*QInt8|QInt8"):
        read_arrays(write(form, tmp_path / "quantised.pth", {"x": tensor("0", A, kind="QInt8")}, {"0": A}))


@BOTH
def test_every_truncation_is_noticed(form, tmp_path):
    whole = write(form, tmp_path / "whole.pth", {"x": tensor("0", A), "y": tensor("1", B)}, {"0": A, "1": B})
    content = whole.read_bytes()
    assert set(read_arrays(whole)) == {"x", "y"}
    cut = tmp_path / "cut.pth"
    for length in range(0, len(content), 7):
        cut.write_bytes(content[:length])
        with pytest.raises(JaxsegError, match="cut.pth"):
            read_arrays(cut)


def test_a_flipped_bit_in_a_record_is_noticed(tmp_path):
    path = write_zip(tmp_path / "w.pth", {"x": tensor("0", A)}, {"0": A.tobytes()})
    content = bytearray(path.read_bytes())
    content[content.find(A.tobytes()) + 20] ^= 1
    path.write_bytes(content)
    with pytest.raises(JaxsegError, match="CRC"):
        read_arrays(path)


def test_zip_bombs_and_names_that_leave_the_archive(tmp_path):
    zeros = bytes(10_000_000)
    path = write_zip(tmp_path / "packed.pth", {"x": tensor("0", A)}, {"0": zeros}, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    with pytest.raises(JaxsegError, match="is compressed or encrypted, which PyTorch's are not"):
        read_arrays(path)
    for name in ("../evil", "/etc/evil", "archive/../../evil", "archive\\evil", "C:evil"):
        path = write_zip(tmp_path / "leaving.pth", {"x": tensor("0", A)}, {"0": A.tobytes()}, extra=[(name, b"x")])
        with pytest.raises(JaxsegError, match="leaves the archive"):
            read_arrays(path)
    # One record that the directory lists a thousand times: each may be read, together they are more than the file.
    path = write_zip(tmp_path / "overlap.pth", {"x": tensor("0", A)}, {"0": A.tobytes()})
    with zipfile.ZipFile(path, "a") as archive:
        entry = archive.getinfo("archive/data/0")
        for i in range(1000):
            copy = zipfile.ZipInfo(f"archive/data/c{i}")
            copy.header_offset, copy.CRC = entry.header_offset, entry.CRC
            copy.file_size = copy.compress_size = 10_000
            archive.filelist.append(copy)
        archive._didModify = True
    with pytest.raises(JaxsegError, match="would unpack to 10"):
        read_arrays(path)


def test_a_zip_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pth", "w") as archive:
        archive.writestr("model/code/x.pkl", b"")
    with pytest.raises(JaxsegError, match="not of PyTorch"):
        read_arrays(tmp_path / "w.pth")


def test_safetensors(tmp_path):
    path = tmp_path / "w.bin"
    safetensors.numpy.save_file({"a": A, "b": B, "c": np.asarray([True, False]), "h": A.astype(np.float16)}, path)
    arrays = read_arrays(path)
    assert set(arrays) == {"a", "b", "c", "h"} and arrays["h"].dtype == np.float16
    np.testing.assert_array_equal(arrays["a"], A)
    np.testing.assert_array_equal(arrays["b"], B)

    def header(text, data=b""):
        path.write_bytes(struct.pack("<Q", len(text)) + text + data)
        return path

    half = header(b'{"x":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}', struct.pack("<HH", 0x3FC0, 0xC000))
    np.testing.assert_array_equal(read_arrays(half)["x"], [1.5, -2])
    for text, data in (
        (b'{"x":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}', bytes(8)),
        (b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(4)),
        (b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}', bytes(12)),
        (b'{"x":', b""),
    ):
        with pytest.raises(JaxsegError, match="cannot be read as a .safetensors file"):
            read_arrays(header(text, data))
    with pytest.raises(JaxsegError, match="x is of the type F8_E4M3"):
        read_arrays(header(b'{"x":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}}', bytes(2)))


def test_npz_by_its_content_and_bombs(tmp_path, monkeypatch):
    with open(tmp_path / "w.pth", "wb") as file:
        np.savez_compressed(file, a=A)
    np.testing.assert_array_equal(read_arrays(tmp_path / "w.pth")["a"], A)
    np.savez_compressed(tmp_path / "bomb.npz", a=np.zeros(1_000_000, np.uint8))
    monkeypatch.setattr(npz, "MAX_BYTES", 500_000)
    with pytest.raises(JaxsegError, match="bomb.npz would unpack"):
        read_arrays(tmp_path / "bomb.npz")


def test_an_npz_that_promises_more_than_it_holds(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000,), }"
        text += b" " * (118 - 1 - len(text)) + b"\n"
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text)
    with pytest.raises(JaxsegError, match="w.npz cannot be read"):
        read_arrays(tmp_path / "w.npz")


@pytest.mark.parametrize(("offset", "value"), [(8, 1), (10, zipfile.ZIP_LZMA)])  # flags; way of compression
@pytest.mark.parametrize("name", ["w.npz", "w.pth"])
def test_a_flipped_bit_that_encrypts_or_packs_a_record(name, offset, value, tmp_path):
    path = tmp_path / name
    if name == "w.npz":
        np.savez(path, a=A)
    else:
        write_zip(path, {"a": tensor("0", A)}, {"0": A.tobytes()})
    np.testing.assert_array_equal(read_arrays(path)["a"], A)
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + offset] = value
    path.write_bytes(data)
    with pytest.raises(JaxsegError, match=f"{name}.* is (encrypted or compressed|compressed or encrypted)"):
        read_arrays(path)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n", b"x" * 600, b"\x93NUMPY\x01\x00"])
def test_other_files(content, tmp_path):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(JaxsegError, match="no file of weights that jaxseg knows. It reads PyTorch"):
        read_arrays(tmp_path / "w.pth")
    with pytest.raises(JaxsegError, match="no such file"):
        read_arrays(tmp_path / "none.pth")
    with pytest.raises(JaxsegError, match="cannot be read"):
        read_arrays(tmp_path)


@pytest.mark.data
def test_a_real_training_checkpoint(shared_data):
    arrays = read_arrays(shared_data / "weights" / "mobilenet_v1_0.25_imagenet.pth.tar")
    assert arrays["stage1.0.0.weight"].shape == (8, 3, 3, 3)
    assert sum(a.size for name, a in arrays.items() if name.endswith(("weight", "bias"))) == 470_072
    assert all(np.isfinite(a).all() for a in arrays.values())
