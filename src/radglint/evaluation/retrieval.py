import numpy as np


def recall_at(scores, positive, k):
    order = np.argsort(-scores, axis=1)[:, :k]
    return float(np.take_along_axis(positive, order, 1).any(1).mean())
