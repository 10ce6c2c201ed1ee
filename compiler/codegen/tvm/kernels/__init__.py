"""Our own TIR kernels. This page is their interface; each is made by a function of shapes and weights.

A maker returns a ``Kernel``: a PrimFunc in destination-passing style, as ``relax.call_tir`` calls it, whose
parameters are inputs, then ``weights`` (packed, to be stored and passed as they are), then outputs::

    kernel = sparse.matmul(weight, rows, Cpu.of(tvm_target), bias=True, activation="gelu")
    called = builder.add_func(kernel.function, kernel.name)
    args = [x, bias, *(stored(tensor) for tensor in kernel.weights)]
    y = builder.emit(relax.call_tir(called, args, relax.TensorType([rows, columns], "float32")))

Everywhere ``rows`` is an int, or None for any number (the PrimFunc then reads it from its arguments), and
leading dimensions are flattened into it. ``declines(...)`` beside a maker says in a sentence why the kernel
does not pay or does not fit, None where it is worth calling. PrimFuncs are scheduled, opaque to fusion
(``op_pattern`` 8) and never alias; those of layers of one shape are equal, so that ``add_func`` keeps one.

On the CPU, float32, in vectors of ``Cpu.lanes``, rows or tiles shared by the threads:

=================================  ==================================================  =====================
maker                              inputs → outputs                                    weights
=================================  ==================================================  =====================
sparse.matmul                      x[rows, K] (, bias[N]) → y[rows, N]                 float32, blocks 16 × 1
blocked.matmul                     x[rows, K] (, bias[N]) → y[rows, N]                 int8, int4 in blocks
blocked_integers.matmul_integers   the same, x rounded to 8 bits by block              the same; AVX512-VNNI
norms.rms_norm                     x (, skip)[rows, C], scale[C] → (sum,) y            none
norms.layer_norm                   x (, skip)[rows, C], scale, bias[C] → (sum,) y      none
norms.softmax                      x[rows, C] → y; C may be None                       none
chains.elementwise                 [rows, C], [C] or [1] each → y[rows, C]             none
=================================  ==================================================  =====================

``math`` has ``exp``, ``tanh``, ``erf``, ``sigmoid``, ``gelu``, ``silu`` as TIR expressions that LLVM
vectorizes (TVM's own become calls of libm, one number at a time): for ``te.compute`` in rules as well.

On CUDA, float16 or bfloat16 with float32 sums in tensor cores, no weights of their own:

=================================  ==================================================
cuda_matmul.matmul                 a[rows, K], b[K, N] or [N, K] (, bias[N]) → y[rows, N]
cuda_attention.attention           q, k, v[batch, heads, sequence, size] (, mask) → y
=================================  ==================================================
"""

from __future__ import annotations

from .kernel import Cpu, Kernel

__all__ = ["Cpu", "Kernel"]
