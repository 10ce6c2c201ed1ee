"""Recurrent Keras layers stay recurrent operators and compute what Keras computes, masks included."""

from __future__ import annotations

import os
from collections import Counter

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np
import pytest
from keras import layers
from miaotui.compiler.errors import UnsupportedError
from miaotui.compiler.options import CompileOptions
from miaotui.frontends.keras import import_keras
from support.keras_nets import randomize
from support.sessions import relative_error, run_program

X = np.random.default_rng(0).standard_normal((3, 7, 5)).astype(np.float32)
RIGHT_PADDED = np.array([[1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 0, 0, 0, 0], [9, 9, 0, 0, 0, 0, 0]], np.int32)
HOLES = np.array([[0, 2, 3, 0, 5, 0, 7], [0, 0, 3, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0]], np.int32)

LAYERS = {
    "lstm": lambda: layers.LSTM(4),
    "lstm_sequences": lambda: layers.LSTM(4, return_sequences=True),
    "lstm_backwards": lambda: layers.LSTM(4, go_backwards=True),
    "lstm_backwards_sequences": lambda: layers.LSTM(4, go_backwards=True, return_sequences=True),
    "lstm_state": lambda: layers.LSTM(4, return_sequences=True, return_state=True),
    "lstm_no_bias": lambda: layers.LSTM(4, use_bias=False),
    "lstm_hard": lambda: layers.LSTM(4, recurrent_activation="hard_sigmoid", activation="softsign"),
    "lstm_relu": lambda: layers.LSTM(4, activation="relu", unroll=True),
    "lstm_dropout": lambda: layers.LSTM(4, dropout=0.3, recurrent_dropout=0.2),
    "gru": lambda: layers.GRU(4),
    "gru_before": lambda: layers.GRU(4, reset_after=False, return_sequences=True),
    "gru_state": lambda: layers.GRU(4, return_state=True),
    "rnn": lambda: layers.SimpleRNN(4, return_sequences=True),
    "rnn_linear": lambda: layers.SimpleRNN(4, activation=None),
    "both": lambda: layers.Bidirectional(layers.LSTM(4)),
    "both_sequences": lambda: layers.Bidirectional(layers.LSTM(4, return_sequences=True)),
    "both_sum_gru": lambda: layers.Bidirectional(layers.GRU(4, return_sequences=True), merge_mode="sum"),
    "both_apart": lambda: layers.Bidirectional(layers.GRU(4), merge_mode=None),
    "both_state": lambda: layers.Bidirectional(layers.LSTM(4, return_state=True)),
    "stacked": lambda: layers.RNN([layers.LSTMCell(4), layers.GRUCell(3)], return_sequences=True),
    "cell": lambda: layers.RNN(layers.GRUCell(4)),
}  # fmt: skip


def check(model, *inputs, operators=None):
    imported = import_keras(model, CompileOptions())
    names = [spec.name for spec in imported.program.inputs()]
    cases = [dict(zip(names, one if isinstance(one, tuple) else (one,), strict=True)) for one in inputs]
    for case, (outputs, values) in zip(cases, run_program(imported.program, *cases), strict=True):
        wanted = imported.reference.run(case)
        assert outputs.keys() == wanted.keys()
        assert max(relative_error(outputs[n], wanted[n]) for n in wanted) < 1e-5
        known = imported.reference.layers(case)
        assert known.keys() == values.keys()
        assert all(relative_error(values[p], known[p]) < 1e-5 for p in known)
    counts = Counter(node.op_type for node in imported.program.main.graph)
    if operators is not None:
        assert {op: n for op, n in counts.items() if op in ("LSTM", "GRU", "RNN")} == operators
    return imported


@pytest.mark.parametrize("name", LAYERS)
def test_layer_equals_keras_at_two_lengths(name):
    x = keras.Input((None, 5), name="x")
    y = LAYERS[name]()(x)
    model = randomize(keras.Model(x, list(y) if isinstance(y, tuple | list) else y))
    imported = check(model, X, X[:1, :2])
    assert str(imported.program.inputs()[0]) == "x: float32[batch, sequence, 5]"
    counts = Counter(node.op_type for node in imported.program.main.graph)
    assert counts["LSTM"] + counts["GRU"] + counts["RNN"] in (1, 2)
    assert "Loop" not in counts and "Sigmoid" not in counts


@pytest.mark.parametrize("ids", [RIGHT_PADDED, HOLES], ids=["right-padded", "holes"])
@pytest.mark.parametrize(
    "name", ["lstm", "lstm_sequences", "lstm_backwards_sequences", "gru", "both", "both_sequences", "stacked"]
)
def test_masked_steps_leave_the_state(name, ids):
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    embedded = layers.Embedding(10, 5, mask_zero=True)(tokens)
    y = LAYERS[name]()(embedded)
    check(randomize(keras.Model(tokens, y)), ids, ids[:2, :4])


def test_initial_state_is_an_input_of_the_operator():
    x, h, c = keras.Input((None, 5), name="x"), keras.Input((4,), name="h"), keras.Input((4,), name="c")
    y = layers.LSTM(4)(x, initial_state=[h, c])
    model = randomize(keras.Model([x, h, c], y))
    imported = check(model, (X, X[:, 0, :4].copy(), X[:, 1, :4].copy()), operators={"LSTM": 1})
    lstm = next(node for node in imported.program.main.graph if node.op_type == "LSTM")
    assert lstm.inputs[5] is not None and lstm.inputs[6] is not None


def test_zero_initial_state_is_left_out():
    x = keras.Input((None, 5), name="x")
    imported = check(keras.Model(x, layers.LSTM(4)(x)), X)
    lstm = next(node for node in imported.program.main.graph if node.op_type == "LSTM")
    assert len(lstm.inputs) < 6 or lstm.inputs[5] is None


def test_layers_without_an_operator_are_listed_at_once():
    class Odd(layers.Layer):
        state_size, units = 4, 4

        def call(self, inputs, states):
            return inputs[:, :4], states

    x = keras.Input((7, 5), name="x")
    y = layers.RNN(Odd(), return_sequences=True, name="odd")(x)
    y = layers.LSTM(4, activation="mish", return_sequences=True, name="strange")(y)
    model = keras.Model(x, y)
    with pytest.raises(UnsupportedError) as error:
        import_keras(model, CompileOptions())
    assert len(error.value.problems) == 2
    assert "'odd'" in str(error.value) and "'strange'" in str(error.value) and "mish" in str(error.value)


def test_layer_classes_are_restored():
    before = layers.LSTM.inner_loop, layers.Bidirectional.call, layers.Layer.__call__
    x = keras.Input((None, 5), name="x")
    import_keras(keras.Model(x, layers.Bidirectional(layers.LSTM(4))(x)), CompileOptions())
    assert (layers.LSTM.inner_loop, layers.Bidirectional.call, layers.Layer.__call__) == before
