"""Adaptive average pooling in ONNX operators; ONNX has none, and PyTorch's exporter writes hundreds of nodes for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnxscript
import torch

op: Any = onnxscript.opset18  # its annotations do not fit traced values


def _adaptive_average(x: Any, output_size: Sequence[Any]) -> Any:
    """Average over the windows [⌊i·n/m⌋, ⌈(i+1)·n/m⌉) of each axis, which reduces n values to m.

    A window of the plane is the product of a window of rows and a window of columns, so the mean over it is a product
    with one matrix from the left and another from the right. Equal windows without overlap are a plain pooling.

    Args:
        x: N×C×h×w, whose sides are numbers or values of the graph.
        output_size: height and width of the result, also numbers or values of the graph.
    """
    if list(output_size) == [1, 1]:
        return op.GlobalAveragePool(x)
    sides = x.shape[2:]
    if all(isinstance(n, int) and isinstance(m, int) and n % m == 0 for n, m in zip(sides, output_size, strict=True)):
        window = [n // m for n, m in zip(sides, output_size, strict=True)]
        return op.AveragePool(x, kernel_shape=window, strides=window)
    rows, columns = (
        op.CastLike(_windows(op.Squeeze(op.Shape(x, start=axis, end=axis + 1)), m), x)
        for axis, m in zip((2, 3), output_size, strict=True)
    )
    return op.MatMul(op.MatMul(rows, x), op.Transpose(columns, perm=[1, 0]))


def _windows(n: Any, m: Any) -> Any:
    """Matrix m×n whose row i holds 1 / (length of window i) inside window i, and 0 elsewhere."""
    zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
    m = op.Constant(value_int=m) if isinstance(m, int) else m
    i = op.Unsqueeze(op.Range(zero, m, one), [1])
    j = op.Unsqueeze(op.Range(zero, n, one), [0])
    start = op.Div(op.Mul(i, n), m)
    end = op.Div(op.Sub(op.Add(op.Mul(op.Add(i, one), n), m), one), m)
    inside = op.And(op.GreaterOrEqual(j, start), op.Less(j, end))
    return op.Div(op.Cast(inside, to=1), op.Cast(op.Sub(end, start), to=1))


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.adaptive_avg_pool2d.default: _adaptive_average,
    torch.ops.aten._adaptive_avg_pool2d.default: _adaptive_average,
}
"""Translations for `torch.onnx.export`."""
