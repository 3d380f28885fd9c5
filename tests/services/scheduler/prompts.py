"""Prompts for property tests of prefix sharing."""

import hypothesis.strategies as st

from tests.services.scheduler.fake_worker import VOCABULARY


@st.composite
def prompts(draw: st.DrawFn) -> list[int]:
    """Prompts that share prefixes often: one of few stems, cut anywhere, and a few tokens of its own."""
    stem = draw(
        st.sampled_from([[0, 1, 2, 3] * 6, [0, 1, 2, 3] * 3 + [4, 4, 4, 4] * 3, [1] * 20, [0, 1, 2, 3, 0, 2] * 4])
    )
    return stem[: draw(st.integers(1, len(stem)))] + draw(st.lists(st.integers(0, VOCABULARY - 1), max_size=6))
