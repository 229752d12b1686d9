"""Every kind of picture that people have, against values known beforehand."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from jaxseg.core.errors import BadExampleError
from jaxseg.data import decode
from jaxseg.data.catalog.voc2012_segmentation import INFO as VOC

RED_GREEN = np.array([[[255, 0, 0], [0, 255, 0]], [[10, 20, 30], [1, 2, 3]], [[7, 7, 7], [255, 255, 255]]], np.uint8)


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def test_rgb_png_is_read_as_it_is():
    np.testing.assert_array_equal(decode.read_image(encoded(Image.fromarray(RED_GREEN))), RED_GREEN)


def test_path_and_bytes_agree(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(RED_GREEN)))
    np.testing.assert_array_equal(decode.read_image(tmp_path / "a.png"), RED_GREEN)


def test_grey_becomes_three_equal_channels():
    grey = np.array([[0, 17], [200, 255]], np.uint8)
    np.testing.assert_array_equal(decode.read_image(encoded(Image.fromarray(grey))), np.stack([grey] * 3, -1))


def test_transparency_is_composited_over_white():
    rgba = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 51]]], np.uint8)
    # 51 / 255 = 0.2 of black over white: 255 * 0.8 = 204.
    expected = [[[255, 0, 0], [255, 255, 255], [204, 204, 204]]]
    np.testing.assert_array_equal(decode.read_image(encoded(Image.fromarray(rgba))), expected)


def test_palette_image_shows_its_colours():
    image = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    image.putpalette([1, 2, 3, 40, 50, 60] + [0] * 762)
    np.testing.assert_array_equal(decode.read_image(encoded(image)), [[[1, 2, 3], [40, 50, 60]]])


def test_cmyk_jpeg():
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    pixels = decode.read_image(encoded(image, "JPEG", quality=100))
    assert pixels.shape == (8, 8, 3)
    assert np.abs(pixels.astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bit_keeps_the_high_byte(channels):
    values = np.array([[0, 255, 256], [32768, 65279, 65535]], np.uint16)
    values = np.repeat(values[..., None], 3, -1) if channels == 3 else values
    data = cv2.imencode(".png", values)[1].tobytes()
    np.testing.assert_array_equal(decode.read_image(data)[..., 0], [[0, 0, 1], [128, 254, 255]])
    canonical, size = decode.canonical_image(data, name="x")
    assert size == (2, 3) and canonical != data
    np.testing.assert_array_equal(decode.decode_image(canonical, name="x")[..., 1], [[0, 0, 1], [128, 254, 255]])


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    data = encoded(Image.fromarray(RED_GREEN), exif=exif)
    expected = np.rot90(RED_GREEN, -1)
    np.testing.assert_array_equal(decode.read_image(data), expected)
    canonical, size = decode.canonical_image(data, name="x")
    assert size == (2, 3)
    np.testing.assert_array_equal(decode.decode_image(canonical, name="x"), expected)


def test_one_pixel():
    np.testing.assert_array_equal(decode.read_image(encoded(Image.new("RGB", (1, 1), (1, 2, 3)))), [[[1, 2, 3]]])
    np.testing.assert_array_equal(decode.read_label(encoded(Image.new("L", (1, 1), 9))), [[9]])


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_canonical_bytes_stay_and_decode_alike(form):
    picture = cv2.resize(RED_GREEN, (37, 29), interpolation=cv2.INTER_CUBIC)
    data = encoded(Image.fromarray(picture), form)
    canonical, size = decode.canonical_image(data, name="x")
    assert canonical == data and size == (29, 37)
    np.testing.assert_array_equal(decode.decode_image(data, name="x"), decode.read_image(data))


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_truncated_image_is_named(form):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), form)
    for read in (lambda d: decode.read_image(d, name="a/b.x"), lambda d: decode.canonical_image(d, name="a/b.x")):
        with pytest.raises(BadExampleError, match=r"a/b\.x: damaged or truncated"):
            read(data[: len(data) // 2])


def test_empty_missing_and_foreign_files_are_named(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_bytes(b"hello, this is no image")
    with pytest.raises(BadExampleError, match=r"empty\.png: the file is empty"):
        decode.read_image(tmp_path / "empty.png")
    with pytest.raises(BadExampleError, match=r"text\.png: not an image"):
        decode.read_image(tmp_path / "text.png")
    with pytest.raises(BadExampleError, match=r"none\.png: cannot be read"):
        decode.read_label(tmp_path / "none.png")


def test_too_many_pixels_are_refused_before_decoding(monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 5)
    with pytest.raises(BadExampleError, match="big: 2x3 pixels; it must have 1 to 5"):
        decode.read_image(encoded(Image.fromarray(RED_GREEN)), name="big")


def test_a_caller_may_allow_more_pixels(monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 5)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)  # beyond twice of it Pillow itself refuses
    monkeypatch.setattr(decode, "STRIP_PIXELS", 4)
    data = encoded(Image.fromarray(RED_GREEN))
    np.testing.assert_array_equal(decode.read_image(data, max_pixels=6), RED_GREEN)
    assert Image.MAX_IMAGE_PIXELS == 2
    with pytest.raises(BadExampleError, match="--max_pixels"):
        decode.read_image(data)


def test_a_png_that_claims_a_huge_size_is_refused():
    data = bytearray(encoded(Image.fromarray(RED_GREEN)))
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    import zlib

    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    with pytest.raises(BadExampleError, match="pixels"):
        decode.read_image(bytes(data))


def test_float_image_is_refused():
    with pytest.raises(BadExampleError, match="float pixels"):
        decode.read_image(encoded(Image.fromarray(np.zeros((2, 2), np.float32)), "TIFF"))


IDS = np.array([[0, 1, 20], [255, 7, 15]], np.int32)


@pytest.mark.parametrize("info", [None, VOC])
def test_label_round_trip(tmp_path, info):
    decode.write_label_png(tmp_path / "l.png", IDS, info)
    read = decode.read_label(tmp_path / "l.png")
    assert read.dtype == np.int32
    np.testing.assert_array_equal(read, IDS)
    assert [p.name for p in tmp_path.iterdir()] == ["l.png"]


def test_palette_label_holds_the_data_sets_colours(tmp_path):
    decode.write_label_png(tmp_path / "l.png", IDS, VOC)
    colours = np.asarray(Image.open(tmp_path / "l.png").convert("RGB"))
    np.testing.assert_array_equal(colours[0], [(0, 0, 0), (128, 0, 0), (0, 64, 128)])
    np.testing.assert_array_equal(colours[1, 0], (224, 224, 192))


def test_sixteen_bit_label():
    ids = np.array([[0, 300], [65535, 255]], np.int32)
    np.testing.assert_array_equal(decode.read_label(decode.encode_label(ids)), ids)
    np.testing.assert_array_equal(decode.decode_label(decode.encode_label(ids), name="x"), ids)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_labels_of_few_bits_are_not_stretched(bits):
    import struct
    import zlib

    ids = [0, 1, 1, 0] if bits == 1 else [0, 1, 2, 3]
    packed = sum(v << (8 * (-(-4 * bits // 8)) - bits * (i + 1)) for i, v in enumerate(ids))
    row = b"\0" + packed.to_bytes(-(-4 * bits // 8), "big")

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 4, 1, bits, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(decode.read_label(data), [ids])


def test_colour_and_jpeg_labels_are_refused():
    with pytest.raises(BadExampleError, match=r"l\.png: a label in colours \(mode RGB\)"):
        decode.read_label(encoded(Image.fromarray(RED_GREEN)), name="l.png")
    with pytest.raises(BadExampleError, match=r"l\.jpg: a JPEG label"):
        decode.read_label(encoded(Image.new("L", (4, 4)), "JPEG"), name="l.jpg")


def test_ids_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(BadExampleError, match="holds ids 0..255"):
        decode.write_label_png(tmp_path / "l.png", np.array([[256]]), VOC)
    with pytest.raises(BadExampleError, match="holds 0..65535"):
        decode.encode_label(np.array([[-1]]))
