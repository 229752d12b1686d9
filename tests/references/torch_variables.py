"""From a PyTorch module with random weights and running statistics to jaxseg's variables, by rules for the names."""

import re

import jax
import jax.numpy as jnp
import numpy as np


def randomize(module, seed=0):
    """Gives every batch norm random statistics and affine values, and takes the module to evaluation mode."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, torch.nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (part.running_mean, -0.3, 0.3),
                (part.running_var, 0.5, 2.0),
                (part.weight.data, 0.5, 1.5),
                (part.bias.data, -0.3, 0.3),
            ):
                tensor.uniform_(low, high, generator=generator)
    return module.eval()


def _leaf(name, tensor):
    """(collection, leaf name, array in our layout) of a `weight`, `bias`, `running_mean` or `running_var`."""
    value = tensor.detach().numpy()
    if name == "running_mean":
        return "batch_stats", "mean", value
    if name == "running_var":
        return "batch_stats", "var", value
    if name == "bias":
        return "params", "bias", value
    if value.ndim == 1:
        return "params", "scale", value
    return "params", "kernel", np.transpose(value, (2, 3, 1, 0)) if value.ndim == 4 else value.T


def to_variables(state_dict, rules, template, *, ignored=(), hooks=()):
    """Variables like `template` with the state_dict's values; every name of either side must find its partner.

    Args:
      state_dict: of the PyTorch module.
      rules: (pattern, replacement) pairs, applied in turn to a module's path; `/` parts our names.
      template: variables, arrays or shapes.
      ignored: prefixes of names that our network does not have.
      hooks: (pattern of our name, function) pairs that change an array after its layout has been turned.
    """
    found = {}
    for name, tensor in state_dict.items():
        if name.endswith("num_batches_tracked") or name.startswith(tuple(ignored)):
            continue
        path, _, leaf = name.rpartition(".")
        for pattern, replacement in rules:
            path = re.sub(pattern, replacement, path)
        collection, leaf, value = _leaf(leaf, tensor)
        ours = f"{collection}/{path}/{leaf}"
        for pattern, hook in hooks:
            value = hook(value) if re.fullmatch(pattern, ours) else value
        assert ours not in found, f"{name} and another give {ours}"
        found[ours] = value
    flat, tree = jax.tree_util.tree_flatten_with_path(template)
    wanted = {"/".join(key.key for key in path): leaf for path, leaf in flat}
    assert set(found) == set(wanted), (sorted(set(found) - set(wanted))[:9], sorted(set(wanted) - set(found))[:9])
    for name, leaf in wanted.items():
        assert found[name].shape == leaf.shape, (name, found[name].shape, leaf.shape)
    return jax.tree.unflatten(tree, [jnp.asarray(found[name]) for name in wanted])


def template_of(module, size=(65, 65)):
    """The module's variables as shapes."""
    image = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    return jax.eval_shape(lambda x: module.init(jax.random.key(0), x, False), image)


def relative_difference(ours, theirs):
    """`max |a - b| / max |b|` of a channels-last array and an NCHW tensor."""
    theirs = np.moveaxis(theirs.detach().numpy(), 1, -1)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.max(np.abs(np.asarray(ours) - theirs)) / np.max(np.abs(theirs)))
