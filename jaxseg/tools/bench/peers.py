"""The same network in PyTorch, as a partner in turns: table of who has which network, and its train step.

PyTorch is imported by name when a peer is asked for: jaxseg itself does without it.
"""

import contextlib
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from jaxseg.core.errors import JaxsegError
from jaxseg.core.names import close_matches
from jaxseg.core.types import Batch
from jaxseg.tools.bench.device import cores
from jaxseg.tools.bench.networks import NETWORKS
from jaxseg.train.run import Run

PACKAGES = {"torchvision": "torchvision", "smp": "segmentation_models_pytorch", "torch": "torch"}
INSTALL = "Install it: pip install -r requirements-references.txt"


def make_peer(against: str, config: Any, run: Run, batch: Batch) -> "Peer | None":
    """The peer's network with random weights, or None for "none".

    Args:
      against: "none", "torchvision", "smp" or "torch".
      config: of the run: model, optimiser, loss weight of auxiliary heads, data type, `bench.torch_compile`.
      run: gives the number of classes and the platform.
      batch: what our train step gets.

    Raises:
      JaxsegError: the package is not installed or has no such network, or it cannot run what the config asks for.
    """
    if against == "none":
        return None
    name = config.model.name
    if name not in NETWORKS[against]:
        others = [other for other, known in NETWORKS.items() if name in known]
        hint = f"--against={others[0]} has it." if others else "--against=none times jaxseg alone."
        raise JaxsegError(f"--against={against} has no counterpart of config.model.name = {name!r}. {hint}")
    platform = run.mesh.devices.flat[0].platform
    if platform not in ("cpu", "gpu") or run.mesh.devices.size > 1:
        raise JaxsegError("--against compares on one device, a CPU or a GPU. Use --against=none here.")
    if list(config.loss.to_dict()) != ["cross_entropy"] or config.train.accumulation_steps != 1:
        raise JaxsegError("--against trains with cross-entropy and one accumulation step; the config asks for others.")
    for package in ("torch", PACKAGES[against]):
        if importlib.util.find_spec(package) is None:
            raise JaxsegError(f"--against={against}: {package} is not installed. {INSTALL}")
    options = config.model.to_dict()
    size = tuple(config.data.crop_size_px)
    network = NETWORKS[against][name](options, run.info.num_classes, size)
    return Peer(network, PACKAGES[against], config, batch, num_classes=run.info.num_classes, on_gpu=platform == "gpu")


class Peer:
    """A PyTorch network: channels last, as many threads as JAX has cores; on a GPU autocast for bfloat16."""

    def __init__(
        self, network: Any, package: str, config: Any, batch: Batch, *, num_classes: int, on_gpu: bool
    ) -> None:
        """Args: network: nn.Module, NCHW to logits of the image's size, or a mapping with `out` and `aux`; package:
        where it comes from; config: of the run; batch: uint8 images, int32 labels; num_classes; on_gpu."""
        torch = self._torch = importlib.import_module("torch")
        torch.set_num_threads(cores())
        self._device = torch.device("cuda" if on_gpu else "cpu")
        if on_gpu:  # as JAX does by default
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.allow_tf32 = True
        self._network = network.to(self._device, memory_format=torch.channels_last)
        self.parameters = sum(p.numel() for p in network.parameters())
        self._package, self._on_gpu = package, on_gpu
        self._half = config.train.compute_dtype == "bfloat16"
        self._compiled = config.bench.torch_compile
        self._call = torch.compile(self._network) if self._compiled else self._network
        self._aux_weight = config.loss_aux_weight
        self._optimizer = make_optimizer(torch, self._network.parameters(), config.optimizer.to_dict())
        # Images come normalised and labels as PyTorch wants them: its step is spared what ours does itself.
        image = (batch["image"].astype(np.float32) - np.float32(127.5)) / np.float32(127.5)
        label = np.where((batch["label"] >= 0) & (batch["label"] < num_classes), batch["label"], -100)
        placed = torch.from_numpy(np.ascontiguousarray(image.transpose(0, 3, 1, 2))).to(self._device)
        self._image = placed.contiguous(memory_format=torch.channels_last)
        self._label = torch.from_numpy(label.astype(np.int64)).to(self._device)
        self._loss: Any = float("nan")

    @property
    def loss(self) -> float:
        """Of the last train step."""
        return float(self._loss)

    def facts(self) -> dict[str, Any]:
        """Package and versions, parameters, threads, and how it runs."""
        names = sorted({"torch", self._package})
        return {
            "package": self._package,
            "versions": {name: importlib.metadata.version(name) for name in names},
            "parameters": self.parameters,
            "threads": self._torch.get_num_threads(),
            "memory_format": "channels_last",
            "autocast": "bfloat16" if self._half else "off",
            "torch_compile": self._compiled,
        }

    def prepare(self, parts: Collection[str]) -> None:
        """On a GPU one call of each part, which `torch.compile` compiles; in later ones cuDNN looks for its best.

        XLA's compiler searches as well, so that neither side is left with a guess.
        """
        if not self._on_gpu:
            return
        if "train" in parts:
            self.train_step()
        if "inference" in parts:
            self.inference()
        self.wait()
        self._torch.backends.cudnn.benchmark = True
        self._torch.cuda.empty_cache()

    def train_step(self) -> None:
        """Forward, cross-entropy over the logits at the image's size, backward, update; a GPU has to be awaited."""
        entropy = self._torch.nn.functional.cross_entropy
        self._network.train()
        with self._autocast():
            outputs = self._call(self._image)
        outputs = outputs if isinstance(outputs, Mapping) else {"out": outputs}
        loss = entropy(outputs["out"].float(), self._label, ignore_index=-100)
        if self._aux_weight:
            loss = loss + self._aux_weight * entropy(outputs["aux"].float(), self._label, ignore_index=-100)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        self._loss = loss.detach()

    def inference(self) -> None:
        """Logits of the batch; a GPU has to be awaited."""
        self._network.eval()
        with self._torch.inference_mode(), self._autocast():
            self._call(self._image)

    def _autocast(self) -> Any:
        if not self._half:
            return contextlib.nullcontext()
        return self._torch.autocast(self._device.type, dtype=self._torch.bfloat16)

    def wait(self) -> None:
        """Returns when all that was begun is done."""
        if self._on_gpu:
            self._torch.cuda.synchronize()


def make_optimizer(torch: Any, parameters: Any, options: Mapping[str, Any]) -> Any:
    """PyTorch's optimiser of the config's name; learning rate and weight decay of the config, alike for all parameters.

    Raises:
      JaxsegError: an optimiser that has no counterpart here.
    """
    decay = max((rule.get("weight_decay", 0.0) for rule in options["rules"]), default=0.0)
    rate = options["schedule"]["base"]
    known: dict[str, Callable[[], Any]] = {
        "sgd": lambda: torch.optim.SGD(parameters, rate, options.get("momentum", 0.9), weight_decay=decay),
        "adamw": lambda: torch.optim.AdamW(parameters, rate, weight_decay=decay),
    }
    if options["name"] not in known:
        raise JaxsegError(f"--against: optimizer {options['name']!r}. {close_matches(options['name'], known)}")
    return known[options["name"]]()
