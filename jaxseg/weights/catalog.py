"""Published weights by name: fetched where the network allows, kept in a cache, checked by their SHA-256.

`config.weights.path = "torchvision/resnet50.IMAGENET1K_V2"` is a name of `CATALOG`. PyTorch's and timm's publishers put
the first digits of a file's SHA-256 into its name; addresses and names are those in their sources (torchvision 0.28,
timm 1.0.31).
"""

import dataclasses
import hashlib
import os
import pathlib
import re

import requests

from jaxseg.core.errors import JaxsegError, UnknownNameError
from jaxseg.core.files import write_bytes
from jaxseg.core.names import close_matches

CHUNK_BYTES = 1 << 20
MAX_BYTES = 2 << 30
TIMEOUT_SECONDS = (10, 60)
HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One published file.

    Attributes:
      url: where it lies; its last part is the file's name in the cache.
      table: the name table that it belongs to.
      licence: of the publisher's code, which it states for the weights too where it states anything. The terms of the
        images that the weights were trained on may go further.
      sha256: of the file, or as many first digits as are published; "" takes those in the file's name.
    """

    url: str
    table: str
    licence: str
    sha256: str = ""

    @property
    def file(self) -> str:
        """The file's name."""
        return self.url.rsplit("/", 1)[-1]

    @property
    def digest(self) -> str:
        """The SHA-256 in hexadecimal, or its first digits."""
        match = HASH_IN_NAME.search(self.file)
        return self.sha256 or (match[1] if match else "")


def _torchvision(file: str, table: str) -> Entry:
    return Entry(f"https://download.pytorch.org/models/{file}", table, "BSD-3-Clause")


def _timm(release: str, file: str, table: str) -> Entry:
    base = "https://github.com/huggingface/pytorch-image-models/releases/download"
    return Entry(f"{base}/{release}/{file}", table, "Apache-2.0")


CATALOG: dict[str, Entry] = {
    "torchvision/resnet18.IMAGENET1K_V1": _torchvision("resnet18-f37072fd.pth", "torchvision_resnet"),
    "torchvision/resnet34.IMAGENET1K_V1": _torchvision("resnet34-b627a593.pth", "torchvision_resnet"),
    "torchvision/resnet50.IMAGENET1K_V1": _torchvision("resnet50-0676ba61.pth", "torchvision_resnet"),
    "torchvision/resnet50.IMAGENET1K_V2": _torchvision("resnet50-11ad3fa6.pth", "torchvision_resnet"),
    "torchvision/resnet101.IMAGENET1K_V1": _torchvision("resnet101-63fe2227.pth", "torchvision_resnet"),
    "torchvision/resnet101.IMAGENET1K_V2": _torchvision("resnet101-cd907fc2.pth", "torchvision_resnet"),
    "torchvision/resnet152.IMAGENET1K_V1": _torchvision("resnet152-394f9c45.pth", "torchvision_resnet"),
    "torchvision/resnet152.IMAGENET1K_V2": _torchvision("resnet152-f82ba261.pth", "torchvision_resnet"),
    "torchvision/mobilenet_v2.IMAGENET1K_V1": _torchvision("mobilenet_v2-b0353104.pth", "torchvision_mobilenet_v2"),
    "torchvision/mobilenet_v2.IMAGENET1K_V2": _torchvision("mobilenet_v2-7ebf99e0.pth", "torchvision_mobilenet_v2"),
    "torchvision/deeplabv3_resnet50.COCO_WITH_VOC_LABELS_V1": _torchvision(
        "deeplabv3_resnet50_coco-cd0a2569.pth", "torchvision_deeplab_v3"
    ),
    "torchvision/deeplabv3_resnet101.COCO_WITH_VOC_LABELS_V1": _torchvision(
        "deeplabv3_resnet101_coco-586e9e4e.pth", "torchvision_deeplab_v3"
    ),
    "torchvision/mobilenet_v3_large.IMAGENET1K_V1": _torchvision(
        "mobilenet_v3_large-8738ca79.pth", "torchvision_mobilenet_v3"
    ),
    "torchvision/mobilenet_v3_large.IMAGENET1K_V2": _torchvision(
        "mobilenet_v3_large-5c1a4163.pth", "torchvision_mobilenet_v3"
    ),
    "torchvision/mobilenet_v3_small.IMAGENET1K_V1": _torchvision(
        "mobilenet_v3_small-047dcff4.pth", "torchvision_mobilenet_v3"
    ),
    "torchvision/densenet121.IMAGENET1K_V1": _torchvision("densenet121-a639ec97.pth", "torchvision_densenet"),
    "torchvision/densenet161.IMAGENET1K_V1": _torchvision("densenet161-8d451a50.pth", "torchvision_densenet"),
    "torchvision/densenet169.IMAGENET1K_V1": _torchvision("densenet169-b2777c0a.pth", "torchvision_densenet"),
    "torchvision/densenet201.IMAGENET1K_V1": _torchvision("densenet201-c1103571.pth", "torchvision_densenet"),
    "torchvision/vgg16.IMAGENET1K_V1": _torchvision("vgg16-397923af.pth", "torchvision_vgg16"),
    "torchvision/vgg16_bn.IMAGENET1K_V1": _torchvision("vgg16_bn-6c64b313.pth", "torchvision_vgg16"),
    "torchvision/deeplabv3_mobilenet_v3_large.COCO_WITH_VOC_LABELS_V1": _torchvision(
        "deeplabv3_mobilenet_v3_large-fc3c493d.pth", "torchvision_deeplab_v3_mobilenet_v3"
    ),
    "torchvision/fcn_resnet50.COCO_WITH_VOC_LABELS_V1": _torchvision(
        "fcn_resnet50_coco-1167a1af.pth", "torchvision_fcn_resnet"
    ),
    "torchvision/fcn_resnet101.COCO_WITH_VOC_LABELS_V1": _torchvision(
        "fcn_resnet101_coco-7ecb50ca.pth", "torchvision_fcn_resnet"
    ),
    "torchvision/lraspp_mobilenet_v3_large.COCO_WITH_VOC_LABELS_V1": _torchvision(
        "lraspp_mobilenet_v3_large-d234d4ea.pth", "torchvision_lraspp"
    ),
    "timm/resnet18.a1_in1k": _timm("v0.1-rsb-weights", "resnet18_a1_0-d63eafa0.pth", "torchvision_resnet"),
    "timm/resnet34.a1_in1k": _timm("v0.1-rsb-weights", "resnet34_a1_0-46f8f793.pth", "torchvision_resnet"),
    "timm/resnet50.a1_in1k": _timm("v0.1-rsb-weights", "resnet50_a1_0-14fe96d1.pth", "torchvision_resnet"),
    "timm/resnet101.a1_in1k": _timm("v0.1-rsb-weights", "resnet101_a1_0-cdcb52a9.pth", "torchvision_resnet"),
    "timm/resnet152.a1_in1k": _timm("v0.1-rsb-weights", "resnet152_a1_0-2eee8a7a.pth", "torchvision_resnet"),
    "timm/resnet18d.ra2_in1k": _timm("v0.1-weights", "resnet18d_ra2-48a79e06.pth", "timm_resnet_d"),
    "timm/resnet34d.ra2_in1k": _timm("v0.1-weights", "resnet34d_ra2-f8dcfcaf.pth", "timm_resnet_d"),
    "timm/resnet50d.ra2_in1k": _timm("v0.1-weights", "resnet50d_ra2-464e36ba.pth", "timm_resnet_d"),
    "timm/resnet101d.ra2_in1k": _timm("v0.1-weights", "resnet101d_ra2-2803ffab.pth", "timm_resnet_d"),
    "timm/resnet152d.ra2_in1k": _timm("v0.1-weights", "resnet152d_ra2-5cac0439.pth", "timm_resnet_d"),
}
"""`<publisher>/<network>.<weights>` as the publisher calls them."""


def locate(path: str | pathlib.Path, table: str = "") -> tuple[pathlib.Path, str]:
    """The file and the table that `config.weights.path` and `.table` mean.

    Args:
      path: a file, or a name of the catalog; a file that is there comes first.
      table: "" for the catalog's own.

    Raises:
      JaxsegError: a name that is not in the catalog, a file that cannot be fetched, or no table for a plain file.
    """
    name = str(path)
    if name in CATALOG and not pathlib.Path(path).exists():
        return fetch(name), table or CATALOG[name].table
    publisher, _, rest = name.partition("/")
    if publisher in {known.split("/")[0] for known in CATALOG} and rest and not pathlib.Path(path).exists():
        raise UnknownNameError(f"config.weights.path = {name!r} is no known name. {close_matches(name, CATALOG)}")
    if not table:
        raise JaxsegError(f"config.weights.table is missing: how are the arrays of {name} named?")
    return pathlib.Path(path), table


def cache_folder() -> pathlib.Path:
    """Where fetched files are kept: `weights` in $JAXSEG_CACHE, or in ~/.cache/jaxseg."""
    cache = os.environ.get("JAXSEG_CACHE", str(pathlib.Path.home() / ".cache" / "jaxseg"))
    return pathlib.Path(cache) / "weights"


def fetch(name: str) -> pathlib.Path:
    """The file of a name in the catalog: from the cache, or fetched into it. Its SHA-256 is checked either way.

    Raises:
      JaxsegError: another SHA-256 than the published one (a fetched file is then thrown away), or a file that is not in
        the cache and cannot be fetched; the message says where to put it.
    """
    entry = CATALOG[name]
    path = cache_folder() / entry.file
    if path.is_file():
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if not found.startswith(entry.digest):
            raise JaxsegError(
                f"{path} is damaged or another file: its SHA-256 is {found[:16]}..., and should begin with "
                f"{entry.digest}. Remove it, and it will be fetched again from {entry.url}."
            )
        return path
    content = _download(name, entry, path)
    found = hashlib.sha256(content).hexdigest()
    if not found.startswith(entry.digest):
        raise JaxsegError(
            f"{entry.url} gave a file whose SHA-256 is {found[:16]}..., which should begin with {entry.digest}. "
            "It was thrown away. Something on the way changed it, or the address gives another file now."
        )
    write_bytes(path, content)
    return path


def _download(name: str, entry: Entry, path: pathlib.Path) -> bytes:
    parts, size = [], 0
    try:
        with requests.get(entry.url, stream=True, timeout=TIMEOUT_SECONDS) as response:
            response.raise_for_status()
            for part in response.iter_content(CHUNK_BYTES):
                parts.append(part)
                size += len(part)
                if size > MAX_BYTES:
                    raise JaxsegError(f"{entry.url} gives more than {MAX_BYTES >> 30} GiB. It is not read.")
    except (requests.RequestException, OSError) as error:
        raise JaxsegError(
            f"{name} is not in the cache and could not be fetched: {_reason(error)}.\n"
            f"Fetch {entry.url} where there is a network, put it at {path}, and start again; or give the file "
            f"itself as config.weights.path with config.weights.table={entry.table}."
        ) from error
    return b"".join(parts)


def _reason(error: Exception) -> str:
    response = getattr(error, "response", None)
    if response is not None:
        return f"the server answered {response.status_code} {response.reason}"
    return f"{type(error).__name__}: {str(error)[:200]}"
