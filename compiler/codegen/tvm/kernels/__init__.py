"""Our own TIR kernels. This page is their interface; each is one file, made by functions of shapes and weights.

A maker returns a ``Kernel``: a PrimFunc in destination-passing style, as ``relax.call_tir`` calls it, whose
parameters are ``inputs``, then ``weights`` (packed, to be stored and passed as they are), then one output::

    kernel = sparse.matmul(weight, rows, Cpu.of(tvm_target), bias=True, activation="gelu")
    called = builder.add_func(kernel.function, kernel.name)
    args = [x, bias, *(stored(tensor) for tensor in kernel.weights)]
    y = builder.emit(relax.call_tir(called, args, relax.TensorType([rows, columns], "float32")))

Everywhere ``rows`` is an int, or None for any number (the PrimFunc then reads it from its arguments), and
leading dimensions are flattened into it. ``declines(...)`` beside a maker says in a sentence why the kernel
does not pay or does not fit, None where it is worth calling. PrimFuncs are scheduled, opaque to fusion
(``op_pattern`` 8) and never alias. CPU kernels are float32, vectors as wide as ``Cpu.lanes``, in parallel.

==================  =====================================================  ====================================
file, maker         inputs → output                                        weights
==================  =====================================================  ====================================
sparse.matmul       x[rows, K] (, bias[N]) → y[rows, N]                    values, columns, starts, bounds
blocked.matmul      x[rows, K] (, bias[N]) → y[rows, N]                    codes, scales (, shifts)
norms.rms_norm      x[rows, C] (, skip), scale[C] → y                      none
norms.layer_norm    x[rows, C] (, skip), scale[C] (, bias[C]) → y          none
norms.softmax       x[rows, C] → y                                         none
chains.elementwise  operands of one shape, rows or scalars → y             none
cuda_matmul.matmul  a[batch, rows, K], b[batch | 1, K, N] → y (tensor cores)      none
cuda_attention.attention  q, k, v[batch, heads, sequence, size] → y (tensor cores)  none
==================  =====================================================  ====================================

``math`` has ``exp``, ``tanh``, ``erf``, ``sigmoid``, ``gelu``, ``silu`` as TIR expressions that LLVM
vectorizes (its own become calls of libm, one number at a time): for ``te.compute`` in rules as well.
"""

from __future__ import annotations

from .kernel import Cpu, Kernel

__all__ = ["Cpu", "Kernel"]
