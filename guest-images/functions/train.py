"""Makes the model of the function `recognition` when the function image is built.

    train.py OUTPUT

A small neural network learns the 8x8 digits that ship with scikit-learn. The output is a pickle of
(classifier, test images); it is read only by recognition.py of the same image.
"""

import os
import pickle
import sys

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier


def main(output):
    digits = load_digits()
    split = 1400
    model = MLPClassifier((64,), max_iter=300, random_state=1)
    model.fit(digits.data[:split], digits.target[:split])
    score = model.score(digits.data[split:], digits.target[split:])
    if score < 0.85:
        sys.exit(f"train.py: the classifier recognises only {score:.0%} of the test images")
    with open(output, "wb") as file:
        pickle.dump((model, digits.data[split:]), file)
    print(f"train.py: {score:.1%} of {len(digits.data) - split} test images recognised", file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1])
