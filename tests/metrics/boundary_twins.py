"""NumPy twins of the boundary metrics in float64, from their definitions: plain loops over pixels, classes, images."""

import math

import numpy as np

STEPS = {4: ((-1, 0), (0, -1), (0, 1), (1, 0)), 8: [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]}


def example(shape=(3, 17, 14), classes=4, seed=0, patches=12):
    """Blobs as labels, the same shifted and spoiled as predictions, and a mask with holes; one class never occurs."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.int32)
    for image in labels:
        for _ in range(patches):
            y, x = rng.integers(0, shape[-2]), rng.integers(0, shape[-1])
            image[y : y + rng.integers(1, 8), x : x + rng.integers(1, 8)] = rng.integers(0, max(1, classes - 1))
    predictions = np.roll(labels, (1, 2), axis=(-2, -1))
    noise = rng.random(shape) < 0.03
    predictions = np.where(noise, rng.integers(0, classes + 1, shape), predictions).astype(np.int32)
    where = rng.random(shape) < 0.97
    return np.where(rng.random(shape) < 0.02, 255, labels).astype(np.int32), predictions, where


def masked(labels, predictions, where, classes):
    """One image's label map and prediction, None where void."""
    truth = [[int(v) if 0 <= v < classes else None for v in row] for row in np.where(where, labels, -1)]
    guess = [[int(v) for v in row] for row in predictions]
    guess = [
        [p if t is not None else None for t, p in zip(*rows, strict=True)] for rows in zip(truth, guess, strict=True)
    ]
    return truth, guess


def at(grid, y, x):
    """The entry, None outside of the image."""
    return grid[y][x] if 0 <= y < len(grid) and 0 <= x < len(grid[0]) else None


def boundary(grid, outside="ignore", connectivity=4):
    """(y, x) of the pixels with a neighbour of another class."""
    found = set()
    for y, row in enumerate(grid):
        for x, value in enumerate(row):
            if value is None:
                continue
            for dy, dx in STEPS[connectivity]:
                near = at(grid, y + dy, x + dx)
                if near != value and (near is not None or outside == "background"):
                    found.add((y, x))
    return found


def squared(a, b):
    return (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2


def surface(grid, c, points="boundary", outside="ignore", connectivity=4):
    """The points of one class, in order."""
    if points == "region":
        return [(y, x) for y, row in enumerate(grid) for x, v in enumerate(row) if v == c]
    return sorted(p for p in boundary(grid, outside, connectivity) if grid[p[0]][p[1]] == c)


def nearest(a, b, spacing=(1, 1)):
    """float64 distances from each point of `a` to the set `b`."""
    return np.asarray(
        [min(math.hypot((p[0] - q[0]) * spacing[0], (p[1] - q[1]) * spacing[1]) for q in b) for p in a], np.float64
    )


def matches(truth, guess, classes, limit, **options):
    """Rows (pixels, boundary, matched, boundary found, matched) of each class; `limit` is the squared tolerance."""
    rows = []
    for c in range(classes):
        there, found = surface(truth, c, **options), surface(guess, c, **options)
        rows.append(
            [
                sum(v == c for row in truth for v in row),
                len(there),
                sum(any(squared(p, q) <= limit for q in found) for p in there),
                len(found),
                sum(any(squared(p, q) <= limit for q in there) for p in found),
            ]
        )
    return np.asarray(rows)


def band(grid, c, reach, distance, outside):
    """Pixels of class c with another class (or, for `background`, nothing) within `reach`."""
    found = set()
    for y, x in surface(grid, c, "region"):
        for dy in range(-reach, reach + 1):
            for dx in range(-reach, reach + 1):
                near = at(grid, y + dy, x + dx)
                if distance == "euclidean" and dy * dy + dx * dx > reach * reach:
                    continue
                if near != c and (near is not None or outside == "background"):
                    found.add((y, x))
    return found


def bands(truth, guess, classes, reach, distance="chessboard", outside="ignore"):
    """Rows (both, truth, prediction) of each class."""
    rows = []
    for c in range(classes):
        a, b = band(truth, c, reach, distance, outside), band(guess, c, reach, distance, outside)
        rows.append([len(a & b), len(a), len(b)])
    return np.asarray(rows)


def trimap(truth, guess, classes, widths, kind="euclidean", around="boundary"):
    """[widths, classes, 3]: right, in the truth, in the prediction."""
    seeds = boundary(truth)
    if around == "void":
        seeds = {(y, x) for y, row in enumerate(truth) for x, v in enumerate(row) if v is None}
    result = np.zeros((len(widths), classes, 3), np.int64)
    for i, width in enumerate(widths):
        for y, row in enumerate(truth):
            for x, t in enumerate(row):
                p = guess[y][x]
                if t is None or not 0 <= p < classes:
                    continue
                if kind == "euclidean":
                    inside = any(squared((y, x), s) < width * width for s in seeds)
                else:
                    inside = any(max(abs(y - s[0]), abs(x - s[1])) <= width // 2 for s in seeds)
                if inside:
                    result[i, t] += (p == t, 1, 0)
                    result[i, p] += (0, 0, 1)
    return result


def contour(grid, c, outside="ignore", spacing=(1, 1)):
    """Corners of one class with the contour's length there: {(y, x): length}; corner (y, x) is above pixel (y, x)."""
    diagonal = math.hypot(*spacing) / 2
    found = {}
    for y in range(len(grid) + 1):
        for x in range(len(grid[0]) + 1):
            four = [at(grid, y + i, x + j) for i in (-1, 0) for j in (-1, 0)]
            if outside == "ignore" and None in four:
                continue
            code = "".join("1" if v == c else "0" for v in four)
            if code in ("0011", "1100"):
                found[y, x] = spacing[1]
            elif code in ("0101", "1010"):
                found[y, x] = spacing[0]
            elif code in ("0110", "1001"):
                found[y, x] = 2 * diagonal
            elif code not in ("0000", "1111"):
                found[y, x] = diagonal
    return found


def nan_mean(values):
    kept = [v for v in values if not math.isnan(v)]
    return math.fsum(kept) / len(kept) if kept else math.nan


def image_mean(values):
    """Mean over images of the mean over an image's classes."""
    return nan_mean([nan_mean(row) for row in values])
