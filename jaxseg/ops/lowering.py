"""What a CPU does for a dense convolution at stride 1, by shapes alone: the rules, each measured where it is made.

Values, image's gradient and kernel gradient are chosen apart: taps one by one (`ops/taps.py`) where padding takes many
products; shifts (`ops/thin.py`) of values with few channels out for those in; half the products (`ops/winograd.py`)
where a number that is copied has enough of them; blocks of rows (`ops/beside.py`) where XLA's convolution is one task;
columns abreast or channels filled up (`ops/narrow.py`) where it has few channels; rows or shifts (`ops/thin.py`) for
thin kernel gradients; XLA's own for the rest.
"""

from collections.abc import Sequence
from typing import NamedTuple

from jaxseg.ops.beside import Beside, beside
from jaxseg.ops.stock_conv import Pads, Pair
from jaxseg.ops.window import gradient_pads, out_size, useful_share
from jaxseg.ops.winograd import ROWS, TAPS, tiles

# Largest share of products with a pixel at which taps win: values and input gradient, kernel gradient.
SHARE = 0.8
KERNEL_SHARE = 0.65
# Fewer channels on either side make the products thin: they then pay only where few of them are left.
CHANNELS = 64
THIN_SHARE = 0.4
THIN_CHANNELS = 16

# Values by shifts: channels out up to the first number, and at least as many channels in for each as the second; of
# 3x3 kernels, where there are so many in, for fewer.
SHIFTS = ((12, 12), (16, 9), (32, 24))
SHIFTS_3X3 = (12, 4)
SHIFTS_3X3_CHANNELS = 32

# The kernel gradient by rows: at most so many channels out and numbers a pixel, and at least so many pixels an image.
ROWS_CHANNELS = 64
ROWS_COLUMNS = 4096
ROWS_PIXELS = 196
FEW_CHANNELS = 4  # of an image
ODD_CHANNELS = 96  # odd multiples of 16 up to here

# Half the products: their share, with the rows that fill up tiles, of those by taps at which they win, and at which the
# kernel gradient wins over XLA's.
HALF_SHARE = 0.8
HALF_KERNEL_SHARE = 1.0
# At least so many products, so many pixels of values, and products for a number copied: of values, of the image's and
# the kernel's gradient, and where the kernel gradient is thin.
HALF_WORK = 2**26
HALF_PIXELS = 128
HALF_VALUES, HALF_IMAGE, HALF_KERNEL, HALF_THIN_KERNEL = 9.5, 13.0, 10.0, 40.0
HALF_COLUMNS = 3  # of the kernel, at most


class Lowering(NamedTuple):
    """The ways of the three parts: "taps", "winograd", "beside" or "xla" (of gradients in the form of
    `ops/canonical.py`); of values also "shifts", of the kernel gradient "rows" and "shifts".

    `beside` and `image_beside`: how "beside" cuts and convolves the image and the cotangent.
    """

    values: str = "xla"
    image: str = "xla"
    kernel: str = "xla"
    beside: Beside = Beside()
    image_beside: Beside = Beside()


def lowering(image: Sequence[int], kernel: Sequence[int], pads: Pads, dilation: Pair) -> Lowering | None:
    """The CPU's way for `[b, h, w, c]` and `[kh, kw, c, n]` at stride 1; None: XLA's own throughout."""
    (b, h, w, _), (kh, kw, c, n) = image, kernel
    out = out_size((h, w), (kh, kw), pads, dilation)
    share = useful_share((h, w), (kh, kw), pads, dilation)
    half = _half(image, kernel, pads, dilation, out)
    fast = half <= HALF_SHARE * share
    of_values = "winograd" if fast and c * n >= HALF_VALUES * (c + 3 * n) and b * out[0] * out[1] >= HALF_PIXELS else ""
    of_image = "winograd" if fast and c * n >= HALF_IMAGE * (n + 3 * c) else ""
    if max(dilation) > 1 and min(c, n) >= THIN_CHANNELS:
        if 0 < share <= (SHARE if min(c, n) >= CHANNELS else THIN_SHARE):
            of_values, of_image = of_values or "taps", of_image or "taps"
    if of_values != "taps" and _by_shifts(kernel):
        of_values = "shifts"
    cut = Beside() if of_values else beside(image, kernel, pads, dilation)
    back = gradient_pads((h, w), out, (kh, kw), pads, dilation)
    image_cut = Beside() if of_image else beside((b, *out, n), (kh, kw, n, c), back, dilation)
    chosen = Lowering(
        of_values or ("xla" if cut == Beside() else "beside"),
        of_image or ("xla" if image_cut == Beside() else "beside"),
        _of_kernel(image, kernel, dilation, share, half),
        cut,
        image_cut,
    )
    return None if chosen == Lowering() else chosen


def _by_shifts(kernel: Sequence[int]) -> bool:
    """Whether values are made by shifts."""
    kh, kw, c, n = kernel
    few = (SHIFTS_3X3,) if kh == kw == 3 and c >= SHIFTS_3X3_CHANNELS else ()
    return kh * kw > 1 and any(n <= most and c >= least * n for most, least in (*few, *SHIFTS))


def _half(image: Sequence[int], kernel: Sequence[int], pads: Pads, dilation: Pair, out: Pair) -> float:
    """Products of Winograd's way for one that is plain: 0.5 where tiles fit; 2 where it cannot be or has too few."""
    (kh, kw, c, n), (rows, columns) = kernel, out
    possible = kh == TAPS and kw <= HALF_COLUMNS and min(*pads[0], *pads[1]) >= 0
    if not possible or image[0] * rows * columns * kh * kw * c * n < HALF_WORK:
        return 2.0
    return 0.5 * tiles(rows, dilation[0]) * ROWS * dilation[0] / rows


def _of_kernel(image: Sequence[int], kernel: Sequence[int], dilation: Pair, share: float, half: float) -> str:
    """The kernel gradient's way."""
    (h, w), (kh, kw, c, n) = image[1:3], kernel
    if max(dilation) > 1 and 0 < share <= (KERNEL_SHARE if min(c, n) >= CHANNELS else THIN_SHARE):
        if min(c, n) >= THIN_CHANNELS:
            return "taps"
    fast = half <= HALF_KERNEL_SHARE * share
    if fast and c * n >= HALF_THIN_KERNEL * (c + n):
        return "winograd"
    enough, spread = h * w >= ROWS_PIXELS, kh * kw > 1
    thin = n % 16 != 0 or (n % 32 != 0 and n <= ODD_CHANNELS) or c <= FEW_CHANNELS
    if enough and spread and thin and c > n:
        return "shifts"
    if enough and thin and n <= ROWS_CHANNELS and kh * kw * c <= ROWS_COLUMNS:
        return "rows"
    return "winograd" if fast and c * n >= HALF_KERNEL * (c + n) else "xla"
