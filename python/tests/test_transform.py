"""Rotations against dense matrices, and Paley's matrices against their definition."""

import unittest

import numpy as np

from gridmill import transform


def sylvester(block: int) -> np.ndarray:
    """`H[i][j] = (-1)^(ones in i & j)`, `(block, block)` float64."""
    i = np.arange(block)
    ones = np.array([bin(n).count("1") for n in range(block)])
    return 1.0 - 2.0 * (ones[i[:, None] & i] % 2)


def dense(text: str, cols: int) -> np.ndarray:
    """The normalised matrix of a transform, without signs, `(cols, cols)` float64."""
    basis = transform.by_text(text)
    outer = np.eye(cols // basis.block)
    if basis.order > 1:
        outer = np.where(transform.paley(basis.order), 1.0, -1.0)
    return np.kron(outer, sylvester(basis.block)) / np.sqrt(basis.order * basis.block)


class Transforms(unittest.TestCase):
    def test_parted_rows_come_back(self) -> None:
        random = np.random.default_rng(2)
        for cols, high in [(192, 64), (96, 16), (7, 3)]:
            with self.subTest(cols=cols, high=high):
                basis = transform.by_text(f"parted:{high}")
                self.assertTrue(basis.fits(cols))
                self.assertFalse(basis.fits(high))
                signs = transform.signs_of_seed(5, cols)
                loud = np.zeros(cols, bool)
                loud[random.permutation(cols)[:high]] = True
                signs[loud] *= 2
                rows = random.normal(size=(3, cols))
                signed = rows * np.sign(signs)
                parts = [signed[:, ~loud], signed[:, loud]]
                blocks = [part.shape[1] & -part.shape[1] for part in parts]
                turned = [
                    part @ dense(f"hadamard:{block}", part.shape[1]).T
                    for part, block in zip(parts, blocks)
                ]
                coded = np.concatenate(turned, axis=1).astype(np.float32)
                found = transform.inverse(basis, signs, coded)
                np.testing.assert_allclose(found, rows, atol=1e-5)

    def test_inverse_brings_rows_back(self) -> None:
        random = np.random.default_rng(1)
        cases = [("none", 24), ("hadamard:1", 24), ("hadamard:16", 48), ("hadamard:128", 128),
                 ("kronecker:12x8", 96), ("kronecker:36x16", 576), ("kronecker:4x2", 8),
                 ("kronecker:20x1", 20)]
        for text, cols in cases:
            with self.subTest(transform=text):
                basis = transform.by_text(text)
                self.assertTrue(basis.fits(cols))
                rows = random.normal(size=(3, cols))
                signs = transform.signs_of_seed(5, cols)
                turned = rows if basis.is_none else (rows * signs) @ dense(text, cols).T
                found = transform.inverse(basis, signs, turned.astype(np.float32))
                # Less than ten roundings for each of few additions of values near one.
                np.testing.assert_allclose(found, rows, atol=1e-5)

    def test_paley_matrices_are_hadamard_matrices(self) -> None:
        orders = [order for order in range(transform.ORDER_MAX + 5)
                  if transform.paley(order) is not None]
        for order in orders:
            with self.subTest(order=order):
                matrix = np.where(transform.paley(order), 1, -1)
                expected = order * np.eye(order, dtype=int)
                np.testing.assert_array_equal(matrix @ matrix.T, expected)
        for order in (4, 8, 12, 20, 28, 36, 76, 240, 252):
            self.assertIn(order, orders)
        for order in (1, 2, 16, 40, 92, 244, 260):
            self.assertNotIn(order, orders)

    def test_what_does_not_fit(self) -> None:
        for text in ["", "hadamard", "hadamard:064", "hadamard:+64", "kronecker:12",
                     "kronecker:12x", "hadamard:64 ", "Hadamard:64"]:
            self.assertIsNone(transform.by_text(text), text)
        for text, cols in [("hadamard:12", 24), ("hadamard:64", 96), ("kronecker:12x8", 192),
                           ("kronecker:12x6", 72), ("kronecker:16x4", 64), ("kronecker:1x8", 8)]:
            self.assertFalse(transform.by_text(text).fits(cols), text)

    def test_signs_of_seed_0(self) -> None:
        self.assertEqual(transform.signs_of_seed(0, 5).tolist(), [1] * 5)


if __name__ == "__main__":
    unittest.main()
