"""Keras 3 networks for the golden tests, on the torch backend: a CNN, an LSTM text model, a transformer."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np
from keras import layers


def cnn() -> Any:
    """image: float32[batch, 32, 32, 3] -> class probabilities float32[batch, 10]."""
    image = keras.Input((32, 32, 3), name="image")
    x = layers.Rescaling(2.0, -1.0)(image)
    for index, filters in enumerate((16, 32)):
        x = layers.Conv2D(filters, 3, padding="same", name=f"conv{index}")(x)
        x = layers.BatchNormalization(name=f"norm{index}")(x)
        x = layers.Activation("relu", name=f"relu{index}")(x)
        x = layers.MaxPooling2D(name=f"pool{index}")(x)
    y = layers.SeparableConv2D(32, 3, padding="same", name="separable")(x)
    x = layers.Add(name="residual")([x, y])
    x = layers.GlobalAveragePooling2D(name="average")(x)
    x = layers.Dropout(0.3)(x)
    return keras.Model(image, layers.Dense(10, activation="softmax", name="head")(x), name="cnn")


def lstm_text() -> Any:
    """tokens: int32[batch, sequence] -> float32[batch, 3]; a bidirectional LSTM below an LSTM."""
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    x = layers.Embedding(500, 32, name="embed")(tokens)
    x = layers.Bidirectional(layers.LSTM(24, return_sequences=True), name="both")(x)
    x = layers.LSTM(20, name="last")(x)
    return keras.Model(tokens, layers.Dense(3, name="head")(x), name="lstm_text")


def transformer() -> Any:
    """tokens: int32[batch, 24] -> float32[batch, 4]; post-norm encoder blocks."""
    tokens = keras.Input((24,), dtype="int32", name="tokens")
    positions = layers.Embedding(24, 32, name="positions")(keras.ops.arange(24))
    x = layers.Embedding(500, 32, name="embed")(tokens) + positions
    for index in range(2):
        a = layers.MultiHeadAttention(4, 8, name=f"attention{index}")(x, x)
        x = layers.LayerNormalization(epsilon=1e-6, name=f"norm{index}a")(x + a)
        m = layers.Dense(64, activation="gelu", name=f"up{index}")(x)
        m = layers.Dense(32, name=f"down{index}")(m)
        x = layers.LayerNormalization(epsilon=1e-6, name=f"norm{index}b")(x + m)
    x = layers.GlobalAveragePooling1D(name="average")(x)
    return keras.Model(tokens, layers.Dense(4, name="head")(x), name="transformer")


def randomize(model: Any, seed: int = 0) -> Any:
    """Weights that keep activations near unit scale, statistics included."""
    random = np.random.default_rng(seed)
    for variable in model.weights:
        shape, leaf = tuple(variable.shape), variable.path.rsplit("/", 1)[-1]
        if leaf in ("gamma", "moving_variance"):
            value = random.uniform(0.7, 1.3, shape)
        elif leaf == "embeddings":
            value = random.standard_normal(shape)
        elif len(shape) < 2:
            value = random.standard_normal(shape) * 0.1
        else:
            value = random.standard_normal(shape) * np.prod(shape[:-1]) ** -0.5
        variable.assign(value.astype("float32"))
    return model
