"""From a config to the parts of a run: data set, mesh, model, predictor, initial variables."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxseg.core.errors import JaxsegError
from jaxseg.core.mesh import check_batch_size, make_mesh
from jaxseg.core.names import call_with_options, close_matches, resolve
from jaxseg.core.rng import base_key
from jaxseg.core.types import DatasetInfo
from jaxseg.data.dataset import Dataset, open_dataset
from jaxseg.evaluate.split import Evaluator
from jaxseg.inference.predictor import Predictor
from jaxseg.losses.composition import compose
from jaxseg.metrics.metric import make_metrics
from jaxseg.train.bundle import small_on
from jaxseg.train.class_weights import read_class_weights
from jaxseg.train.collector import collector_paused
from jaxseg.train.optim import make_optimizer
from jaxseg.train.state import TrainState, create_state
from jaxseg.train.step import make_train_step
from jaxseg.weights.load import load_weights

COMPUTE_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
COUNTS = (
    "train.total_steps",
    "train.accumulation_steps",
    "train.log_every_steps",
    "evaluate.every_steps",
    "checkpoint.every_steps",
)
_LITTLE = {"xla_backend_optimization_level": 1}


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts that training, evaluation and prediction share.

    Attributes:
      config: the locked config.
      info: facts of the data set.
      mesh: of all devices.
      model: the Flax module.
      image_mean: per channel, 0..255.
      image_std: per channel, 0..255.
      predictor: the model with the config's scales, flip and window.
      dataset: opened and prepared, or None where only prediction is wanted.
      kept_initialize: `initialize` as an earlier start traced it; None: it is traced.
    """

    config: Any
    info: DatasetInfo
    mesh: Mesh
    model: nn.Module
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    predictor: Predictor
    dataset: Dataset | None = None
    kept_initialize: Callable[[jax.Array], Any] | None = None

    @property
    def mean_pixel(self) -> tuple[int, ...]:
        """What pads images: the mean, rounded, so that padding is about 0 after normalisation."""
        return tuple(int(round(m)) for m in self.image_mean)

    def open_dataset(self) -> Dataset:
        """The data set; a run that was made without one (prediction) has none to give."""
        if self.dataset is None:
            raise ValueError("this run was made with open_data=False")
        return self.dataset

    def noted_config(self) -> dict[str, Any]:
        """The config with class weights as numbers: a run whose file of weights changes is another run.

        Raises:
          JaxsegError: as `read_class_weights`.
        """
        return self.config.to_dict() | {"loss": read_class_weights(self.config.loss.to_dict(), self.info)}

    def name_of(self, index: int) -> str:
        """The file that a training example came from."""
        return self.open_dataset().split(self.config.data.train_split).name_of(index)

    def initialize(self, key: jax.Array) -> Any:
        """Random variables of the model."""
        size = [min(n, 65) for n in self.config.data.crop_size_px]
        image = jnp.zeros((1, *size, 3), jnp.float32)
        return self.model.init({"params": key, "dropout": key}, image, train=False)

    @functools.cached_property
    def _initialize(self) -> Any:
        """`initialize`, compiled; one object, so that its shapes and its values share one tracing of the network.

        It runs once, so a CPU compiles its hundreds of random kernels with little optimisation: FC-DenseNet56's take
        9 s instead of 47, and 49 instead of 35 ms to run; the values are the same.
        """
        little = _LITTLE if jax.local_devices()[0].platform == "cpu" else None
        return jax.jit(self.kept_initialize or self.initialize, compiler_options=little)

    def variable_shapes(self) -> Any:
        """Shapes and dtypes of the model's variables, without computing them."""
        with jax.default_device(jax.local_devices()[0]):  # another context would be another tracing
            return jax.eval_shape(self._initialize, base_key(0))

    def read_weights(self) -> Any:
        """`variable_shapes` with the arrays in place that the file of `config.weights` has, if it names one.

        Raises:
          JaxsegError: as `load_weights`.
        """
        shapes = self.variable_shapes()
        if not self.config.weights.path:
            return shapes
        options = self.config.weights.to_dict()
        settings = {"image_mean": self.image_mean, "image_std": self.image_std}
        return load_weights(options.pop("path"), shapes, network=self.model, settings=settings, **options)

    def initial_variables(self, weights: Any) -> Any:
        """Seeded variables on the host where `weights`, of `read_weights`, has shapes only; alike on every process."""
        with jax.default_device(jax.local_devices()[0]):
            key = jax.random.fold_in(base_key(self.config.seed), 0x1717)
            seeded = jax.tree.map(np.asarray, self._initialize(key))
        return jax.tree.map(lambda w, s: s if isinstance(w, jax.ShapeDtypeStruct) else w, weights, seeded)

    def evaluator(self) -> Evaluator:
        """A compiled evaluation of this predictor on this mesh."""
        names = self.config.evaluate.get("metrics", ("confusion",))
        return Evaluator(self.predictor, self.info, self.mesh, make_metrics(names, num_classes=self.info.num_classes))


def make_run(config: Any, *, open_data: bool = True) -> Run:
    """Builds the parts that the config names; the data set is prepared where it is not yet."""
    dataset = open_dataset(config.data) if open_data else None
    info = dataset.info if dataset else resolve("data.catalog", config.data.name, "INFO")
    options = config.model.to_dict()
    name, mean, std = options.pop("name"), options.pop("image_mean"), options.pop("image_std")
    dtype = config.train.compute_dtype
    if dtype not in COMPUTE_DTYPES:
        raise JaxsegError(f"config.train.compute_dtype {dtype!r} is not known. {close_matches(dtype, COMPUTE_DTYPES)}")
    model = call_with_options(
        resolve("models", name),
        options | remat_option(config),
        where="config.model",
        num_classes=info.num_classes,
        dtype=COMPUTE_DTYPES[dtype],
    )
    mesh = make_mesh(config.mesh.to_dict())
    predictor = Predictor(
        model=model,
        mean=tuple(mean),
        std=tuple(std),
        num_classes=info.num_classes,
        scales=tuple(config.evaluate.scales),
        flip=config.evaluate.flip,
        window_px=tuple(config.evaluate.window_px),
    )
    return Run(config, info, mesh, model, tuple(mean), tuple(std), predictor, dataset)


def remat_option(config: Any) -> dict[str, bool]:
    """`{"remat": True}` for the network where `config.train.remat` says so; nothing otherwise.

    Raises:
      JaxsegError: it is neither True nor False, or `config.model.remat` says the opposite.
    """
    wanted = config.train.get("remat", False)
    if not isinstance(wanted, bool):
        raise JaxsegError(f"config.train.remat = {wanted!r} is not True or False.")
    if wanted and config.model.get("remat", True) is not True:
        raise JaxsegError("config.train.remat = True, but config.model.remat = False. Leave config.model.remat out.")
    return {"remat": True} if wanted else {}


@dataclasses.dataclass(frozen=True)
class Training:
    """What only training needs.

    Attributes:
      abstract: shapes and dtypes of the state, without computing it.
      step: the compiled-on-first-use train step.
      create: makes the state of step 0 from variables.
      first_state: computes that of the config on the host, given `Run.read_weights`; not needed when a checkpoint is
        restored.
    """

    abstract: TrainState
    step: jax.stages.Wrapped
    create: Callable[[Any], TrainState]
    first_state: Callable[[Any], TrainState]


@collector_paused()
def make_training(run: Run) -> Training:
    """The train step and the initial state of a run."""
    config = run.config
    options = config.train
    for key in COUNTS:
        section, _, name = key.partition(".")
        if config[section][name] < 1:
            raise JaxsegError(f"config.{key} = {config[section][name]} must be at least 1.")
    if not 0 <= options.ema_decay < 1:
        raise JaxsegError(f"config.train.ema_decay = {options.ema_decay} must lie in [0, 1).")
    accumulation = options.accumulation_steps
    check_batch_size(run.mesh, options.batch_size, key="config.train.batch_size", accumulation_steps=accumulation)
    check_batch_size(run.mesh, config.evaluate.batch_size, key="config.evaluate.batch_size")
    shapes = run.variable_shapes()
    optimizer = make_optimizer(
        config.optimizer.to_dict(),
        shapes["params"],
        total_steps=options.total_steps,
        clip_norm=options.clip_norm,
        small=small_on(run.mesh),
    )
    create = functools.partial(create_state, optimizer=optimizer, seed=config.seed, ema=options.ema_decay > 0)
    abstract = jax.eval_shape(create, shapes)
    objective = resolve("train.objectives", config.objective)(
        model=run.model,
        loss=compose(run.noted_config()["loss"]),
        loss_aux_weight=config.loss_aux_weight,
        image_mean=run.image_mean,
        image_std=run.image_std,
        num_classes=run.info.num_classes,
        loss_block_rows=options.get("loss_block_rows", 0),
    )
    step = make_train_step(
        objective,
        optimizer,
        state=abstract,
        mesh=run.mesh,
        accumulation_steps=accumulation,
        ema_decay=options.ema_decay,
    )
    return Training(abstract, step, create, lambda weights: create(run.initial_variables(weights)))
