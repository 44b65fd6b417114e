"""The attention-residual network in PyTorch, the rival of benchmarks/inference.py and benchmarks/training.py.

Same architecture, same weights: they are carried over from the network of `mdn.network`. Channels last, which is what
PyTorch's convolutions on a processor like best.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn.functional import leaky_relu, pixel_shuffle, pixel_unshuffle
from torch.nn.utils.fusion import fuse_conv_bn_eval

import mdn


def carried(variable) -> torch.Tensor:
    """A parameter or statistic as a tensor."""
    return torch.from_numpy(np.array(variable[...]))


def convolution(conv: mdn.network.Conv) -> nn.Conv2d:
    """Conv_3x3 with the kernel of ours."""
    kernel = carried(conv.kernel).permute(3, 2, 0, 1)
    layer = nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, padding=1, bias=conv.bias is not None)
    layer.weight.data = kernel.contiguous()
    if conv.bias is not None:
        layer.bias.data = carried(conv.bias)
    return layer


def dense(linear) -> nn.Linear:
    """A dense layer with the weights of ours."""
    layer = nn.Linear(*linear.kernel.shape)
    layer.weight.data, layer.bias.data = carried(linear.kernel).T.contiguous(), carried(linear.bias)
    return layer


class Unit(nn.Module):
    """sigma(BN(Conv_3x3(x)))."""

    def __init__(self, unit: mdn.network.ConvUnit):
        super().__init__()
        self.conv, own = convolution(unit.conv), unit.norm
        self.norm = nn.BatchNorm2d(self.conv.out_channels, eps=own.epsilon, momentum=1 - own.momentum)
        self.norm.weight.data, self.norm.bias.data = carried(own.scale), carried(own.bias)
        self.norm.running_mean, self.norm.running_var = carried(own.mean), carried(own.var)

    def forward(self, x):
        return leaky_relu(self.norm(self.conv(x)), 0.2, inplace=True)


class Block(nn.Module):
    """Residual, attention, dropout."""

    def __init__(self, block: mdn.network.AttentionResidualBlock):
        super().__init__()
        self.first, self.second = Unit(block.first), Unit(block.second)
        self.squeeze, self.excite = dense(block.attention.squeeze), dense(block.attention.excite)
        self.dropout = nn.Dropout(block.dropout.rate)

    def forward(self, x):
        x = x + self.second(self.first(x))
        y = torch.sigmoid(self.excite(leaky_relu(self.squeeze(x.mean((2, 3))), 0.2)))
        return self.dropout(x * y[:, :, None, None])


class Network(nn.Module):
    """Noisy [n, 1, h, w] in [0, 1] to clean; h and w multiples of the scale. Gate: the sigmoid."""

    def __init__(self, network: mdn.DenoisingNetwork):
        super().__init__()
        assert network.config.attention and network.config.gate == "sigmoid"
        self.scale, ends = network.config.scale, (network.features, network.reconstruction)
        before, after = ([Unit(part.first), Unit(part.second)] for part in ends)
        self.body = nn.Sequential(*before, *map(Block, network.blocks), *after)
        self.output = convolution(network.reconstruction.output)
        self.to(memory_format=torch.channels_last)

    def forward(self, image):
        x = pixel_unshuffle(image, self.scale).contiguous(memory_format=torch.channels_last)
        return pixel_shuffle(torch.sigmoid(self.output(self.body(x))), self.scale)

    def fold(self) -> Network:
        """Batch norms into the convolutions before them, by PyTorch's own means; for evaluation alone."""
        self.eval()
        for unit in [module for module in self.modules() if isinstance(module, Unit)]:
            unit.conv, unit.norm = fuse_conv_bn_eval(unit.conv, unit.norm), nn.Identity()
        return self.to(memory_format=torch.channels_last)

    def restore(self, image: np.ndarray) -> np.ndarray:
        """[H, W] to [H, W], both in [0, 1], in evaluation mode."""
        self.eval()
        with torch.inference_mode():
            return self(torch.from_numpy(image)[None, None])[0, 0].numpy()
