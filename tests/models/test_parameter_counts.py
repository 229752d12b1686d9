"""Parameter counts against the layer tables of the papers and the public figures of releases; nothing is computed."""

import jax
import jax.numpy as jnp
import pytest

from jaxseg.core.names import resolve

XCEPTION = {"backbone": "xception65"}
GREY = {"image_channels": 1}
R50, R101 = {"backbone": "resnet50"}, {"backbone": "resnet101"}
HEAD, AUX = {"head_convolution": True}, {"aux_tap": "stage3"}
ALEXNET = {"variant": "32s", "backbone": "alexnet"}
VGG_V2 = {"backbone": "vgg16", "fc_channels": 1024}
# MSc's five branches: a 3x3 convolution to 128 channels, a 1x1, a classifier.
MSC = sum((9 * c + 1) * 128 + 129 * 128 + 129 * 21 for c in (3, 64, 128, 256, 512))

# What the figure belongs to, model, options, classes, parameters (statistics of batch norm do not count).
ROWS = [
    ("FCN-32s, learnable", "fcn", {"variant": "32s"}, 21, 134_346_581),
    ("FCN-32s, learnable", "fcn", {"variant": "32s"}, 19, 134_338_387),
    ("FCN-32s, learnable", "fcn", {"variant": "32s"}, 60, 134_506_364),
    ("FCN-16s, learnable", "fcn", {"variant": "16s"}, 21, 134_357_354),
    ("FCN-16s, learnable", "fcn", {"variant": "16s"}, 19, 134_348_134),
    ("FCN-16s, learnable", "fcn", {"variant": "16s"}, 60, 134_537_144),
    ("FCN-8s, learnable", "fcn", {"variant": "8s"}, 21, 134_362_751),
    ("FCN-8s, learnable", "fcn", {"variant": "8s"}, 19, 134_353_017),
    ("FCN-8s, learnable", "fcn", {"variant": "8s"}, 60, 134_552_564),
    ("FCN-32s, released kernels", "fcn", {"variant": "32s", "deconvolution": "dense"}, 21, 136_152_917),
    ("FCN-32s, grouped kernels", "fcn", {"variant": "32s", "deconvolution": "depthwise"}, 21, 134_432_597),
    ("FCN-16s, released kernels", "fcn", {"variant": "16s", "deconvolution": "dense"}, 21, 134_815_994),
    ("FCN-16s, grouped kernels", "fcn", {"variant": "16s", "deconvolution": "depthwise"}, 21, 134_379_194),
    ("FCN-8s, released kernels", "fcn", {"variant": "8s", "deconvolution": "dense"}, 21, 134_489_759),
    ("FCN-8s, grouped kernels", "fcn", {"variant": "8s", "deconvolution": "depthwise"}, 21, 134_368_799),
    ("FCN-AlexNet, learnable", "fcn", ALEXNET, 21, 56_954_261),
    ("FCN-AlexNet, released kernels", "fcn", ALEXNET | {"deconvolution": "dense"}, 21, 58_704_590),
    ("FCN ResNet-50, torchvision", "fcn_resnet", R50 | AUX, 21, 35_322_218),
    ("FCN ResNet-101, torchvision", "fcn_resnet", R101 | AUX, 21, 54_314_346),
    ("U-Net, paper, grey", "unet", GREY, 2, 31_030_658),
    ("U-Net, paper", "unet", {}, 2, 31_031_810),
    ("U-Net, paper", "unet", {}, 21, 31_033_045),
    ("U-Net, release", "unet", GREY | {"last_up_channels": 128, "up_activation": True}, 2, 31_100_354),
    ("U-Net, same size, batch norm", "unet", {"padding": "same", "batch_norm": True}, 2, 31_037_698),
    ("SegNet", "segnet", {}, 11, 29_449_355),
    ("SegNet", "segnet", {}, 12, 29_449_932),
    ("SegNet-Basic", "segnet_basic", {}, 11, 1_416_587),
    ("DeepLab v3+ Xception-65, separable", "deeplab_v3plus", XCEPTION | {"separable": True}, 21, 41_055_413),
    ("DeepLab v3+ Xception-65, separable", "deeplab_v3plus", XCEPTION | {"separable": True}, 19, 41_054_899),
    ("DeepLab v3+ Xception-65, plain", "deeplab_v3plus", XCEPTION, 21, 54_711_461),
    ("DeepLab v3+ Xception-65, plain", "deeplab_v3plus", XCEPTION, 19, 54_710_947),
    ("DeepLab v3+ ResNet-101, plain", "deeplab_v3plus", {"backbone": "resnet101"}, 21, 59_344_309),
    ("LR-ASPP, torchvision", "lraspp", {}, 21, 3_221_538),
    ("dilated front end", "dilation", {"context": "none"}, 21, 134_346_581),
    ("dilated front end", "dilation", {"context": "none"}, 19, 134_338_387),
    ("dilated front end", "dilation", {"context": "none"}, 11, 134_305_611),
    ("front end with basic context", "dilation", {}, 21, 134_346_581 + 28_392),
    ("front end with large context", "dilation", {"context": "large"}, 21, 141_149_720),
    ("Dilation10, Cityscapes", "dilation", {"context_layers": 10}, 19, 134_368_179),
    ("Dilation8, CamVid", "dilation", {}, 11, 134_313_443),
    ("Dilation7, KITTI", "dilation", {"context_layers": 7}, 11, 134_312_343),
    ("DeepLab v1 7x7", "deeplab_v1", {"variant": "7x7"}, 21, 134_346_581),
    ("DeepLab v1 4x4", "deeplab_v1", {"variant": "4x4"}, 21, 65_140_565),
    ("DeepLab v1 LargeFOV", "deeplab_v1", {}, 21, 20_505_429),
    ("DeepLab v1 MSc-LargeFOV", "deeplab_v1", {"multi_scale": True}, 21, 20_505_429 + MSC),
    ("DeepLab v2 VGG ASPP-L", "deeplab_v2", VGG_V2, 21, 37_877_652),
    ("DeepLab v2 VGG ASPP-S", "deeplab_v2", VGG_V2 | {"aspp_rates": (2, 4, 8, 12)}, 21, 37_877_652),
    ("DeepLab v2 VGG LargeFOV", "deeplab_v2", VGG_V2 | {"aspp_rates": (12,)}, 21, 20_505_429),
    ("DeepLab v2 ResNet-101 ASPP, three scales", "deeplab_v2", {"scales": (1.0, 0.75, 0.5)}, 21, 44_048_532),
    ("DeepLab v2 ResNet-101 LargeFOV", "deeplab_v2", {"aspp_rates": (12,)}, 21, 42_887_253),
    ("DeepLab v3 ResNet-50, paper", "deeplab_v3", R50, 21, 39_048_533),
    ("DeepLab v3 ResNet-101, paper", "deeplab_v3", R101, 21, 58_040_661),
    ("DeepLab v3 ResNet-50, torchvision, no aux", "deeplab_v3", R50 | HEAD, 21, 39_638_869),
    ("DeepLab v3 ResNet-101, torchvision, no aux", "deeplab_v3", R101 | HEAD, 21, 58_630_997),
    ("DeepLab v3 ResNet-50, torchvision", "deeplab_v3", R50 | HEAD | AUX, 21, 42_004_074),
    ("DeepLab v3 ResNet-101, torchvision", "deeplab_v3", R101 | HEAD | AUX, 21, 60_996_202),
    ("PSPNet50", "pspnet", R50, 21, 46_716_373),
    ("PSPNet101", "pspnet", R101, 21, 65_708_501),
    ("PSPNet50, aux", "pspnet", R50 | AUX, 21, 49_081_578),
    ("PSPNet101, aux", "pspnet", R101 | AUX, 21, 68_073_706),
    ("PSPNet50", "pspnet", R50, 19, 46_715_347),
    ("PSPNet101", "pspnet", R101, 19, 65_707_475),
    ("PSPNet50, aux", "pspnet", R50 | AUX, 19, 49_080_038),
    ("PSPNet101, aux", "pspnet", R101 | AUX, 19, 68_072_166),
    ("PSPNet50", "pspnet", R50, 150, 46_782_550),
    ("PSPNet101", "pspnet", R101, 150, 65_774_678),
    ("PSPNet50, aux", "pspnet", R50 | AUX, 150, 49_180_908),
    ("PSPNet101, aux", "pspnet", R101 | AUX, 150, 68_173_036),
    ("RefineNet-101, four poolings", "refinenet", R101, 21, 118_052_437),
    ("RefineNet-101, two poolings", "refinenet", R101 | {"crp_blocks": 2}, 21, 109_794_901),
    ("GCN ResNet-152, k = 7", "gcn", {"kernel_size": 7}, 21, 59_369_620),
    ("GCN ResNet-152, k = 15", "gcn", {"kernel_size": 15}, 21, 60_688_084),
    ("UPerNet ResNet-50", "upernet", R50, 150, 64_222_294),
    ("UPerNet ResNet-101", "upernet", R101, 150, 83_214_422),
    ("UPerNet ResNet-50, 256 channels", "upernet", R50 | {"fpn_channels": 256}, 150, 41_897_558),
    ("UPerNet ResNet-101, 256 channels", "upernet", R101 | {"fpn_channels": 256}, 150, 60_889_686),
]


@pytest.mark.parametrize(("row", "name", "options", "classes", "expected"), ROWS)
def test_parameter_count(row, name, options, classes, expected):
    model = resolve("models", name)(num_classes=classes, **options)
    image = jax.ShapeDtypeStruct((1, 65, 65, options.get("image_channels", 3)), jnp.float32)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    variables = jax.eval_shape(lambda x: model.init(keys, x, False), image)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == expected, row
