"""Predictions and labels of every kind of task, and their scores worked out by hand: for the tests of the metrics."""

import math

import numpy as np

NAN = float("nan")

# Confusion of these six rows: class 0 has 1 hit, 1 false alarm, 1 miss; class 1 has 2, 1, 0; class 2 has 1, 0, 1.
CLASS_PREDICTIONS = [0, 1, 1, 1, 2, 0]
CLASS_REFERENCES = [0, 0, 1, 1, 2, 2]
CLASS_SCORES = {
    "accuracy": 4 / 6,
    "f1_macro": (2 / 4 + 4 / 5 + 2 / 3) / 3,
    # (hits x rows - sum of t x p) / sqrt((rows^2 - sum of p^2)(rows^2 - sum of t^2)), t = (2, 2, 2), p = (2, 3, 1)
    "mcc": (4 * 6 - 12) / math.sqrt((36 - 14) * (36 - 12)),
}

# Label 0 has 1 hit, 1 false alarm, 1 miss; label 1 (its last logit is exactly probability 0.5) has 2, 1, 0 in its
# three labelled rows; label 2 has no positive and is never predicted. The fourth row has no label at all.
LABEL_LOGITS = np.array([[2.0, 3, -1], [1, 2, -1], [-1, 5, -2], [9, 9, 9], [-2, 0, -3]])
LABEL_REFERENCES = np.array([[1.0, 0, 0], [0, 1, 0], [1, NAN, 0], [NAN, NAN, NAN], [0, 1, 0]])
LABEL_SCORES = {
    "f1_micro": 2 * 3 / (2 * 3 + 2 + 1),
    "f1_macro": (2 / 4 + 4 / 5) / 2,
    # Ranked by logit: label 0 is hit, miss, hit, miss; label 1 is miss, hit, hit.
    "map": ((1 / 1 + 2 / 3) / 2 + (1 / 2 + 2 / 3) / 2) / 2,
}

# Deviations (-1.5, -0.5, 0.5, 1.5) and (-6.5, -3.5, 1.5, 8.5): products sum to 25, squares to 5 and 129.
NUMBER_PREDICTIONS = np.array([1.0, 2, 3, 4])
NUMBER_REFERENCES = np.array([1.0, 4, 9, 16])
NUMBER_SCORES = {"pearson": 25 / math.sqrt(5 * 129), "spearman": 1.0, "rmse": math.sqrt((0 + 4 + 36 + 144) / 4)}

# The positive is nearer in the first row, not in the second; a tie is not nearer; the fourth row has no negative. The
# third column, the loss, does not count.
PAIR_COSINES = [[0.9, 0.1, 5.0], [0.2, 0.3, 5.0], [0.4, 0.4, 5.0], [0.5, NAN, 5.0], [0.8, -0.8, 5.0]]
PAIR_PRESENCE = [1, 1, 1, 1, 1]
PAIR_SCORES = {"accuracy": 2 / 4}

# At 0, 10, 50, 52 and 180 degrees, at lengths that do not count: 0 and 10 find each other, as do 50 and 52, which are
# of two classes; the last finds 52, which is nearest to it and of its class.
EMBEDDINGS = np.array(
    [[math.cos(math.radians(angle)), math.sin(math.radians(angle))] for angle in (0, 10, 50, 52, 180)]
)
EMBEDDINGS = EMBEDDINGS * np.array([[1.0], [3.0], [0.5], [9.0], [2.0]])
EMBEDDING_CLASSES = [0, 0, 0, 1, 1]
EMBEDDING_SCORES = {"accuracy": 3 / 5}

# Squared distances 0, 1, 0, 4, 0. By chance, over all pairs of a prediction (sum 8, of squares 20) and a reference
# (sum 7, of squares 15), they sum to 5 x 20 + 5 x 15 - 2 x 8 x 7 = 63, which is 63 / 5 for five pairs.
RANK_PREDICTIONS = [0, 1, 3, 3, 1]
RANK_REFERENCES = [0, 2, 3, 1, 1]
RANK_SCORES = {"qwk": 1 - 5 / (63 / 5), "accuracy": 3 / 5, "mae": (0 + 1 + 0 + 2 + 0) / 5}
