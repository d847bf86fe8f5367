"""What a core can do at most: float32 products of matrices that fill its caches and nothing else."""

from __future__ import annotations

from answering import Learner, Task, answer

SIDE = 1024


def make(_: Task) -> tuple[Learner, str]:
    import tensorflow as tf

    matrix = tf.random.stateless_normal([SIDE, SIDE], seed=[0, 0])

    def products(count: int) -> None:
        for _ in range(count):
            tf.matmul(matrix, matrix)

    return products, f"tensorflow {tf.__version__}"


if __name__ == "__main__":
    answer(make)
