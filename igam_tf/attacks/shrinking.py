"""The loop of the stronger attacks, in which an example leaves the batch once it is broken."""

from __future__ import annotations

from collections.abc import Callable

from igam_tf.common.lazy import tf

State = dict[str, "tf.Tensor"]


def shrinking_loop(
    step: Callable[[tf.Tensor, State], State], state: State, *, steps: int | tf.Tensor
) -> tf.Tensor:
    """Calls `step` up to `steps` times; an example leaves the batch once it is broken.

    Examples must be independent: no batch statistics.

    Args:
        step: (t, state) -> state of the same names and shapes, for t = 0, 1, ...
        state: tensors with the examples as first axis. Two of them are known here:
            `done` [B] bool, and `answer` [B,...], what is returned for an example that is done, or
            at the end.
        steps: the maximum number of calls.

    Returns:
        The answers, [B,...] in the order of the examples.
    """
    state = state | {"index": tf.range(tf.shape(state["answer"])[0])}
    answers = tf.zeros_like(state["answer"])

    def leave(state: State, answers: tf.Tensor) -> tuple[State, tf.Tensor]:
        """Stores the answers of the examples that are done, and keeps the others."""
        done = tf.where(state["done"])
        answers = tf.tensor_scatter_nd_update(
            answers,
            tf.gather_nd(state["index"], done)[:, None],
            tf.gather_nd(state["answer"], done),
        )
        left = tf.where(~state["done"])[:, 0]
        return {k: tf.gather(v, left) for k, v in state.items()}, answers

    def body(t, state, answers):
        state = step(t, state)
        state, answers = tf.cond(
            tf.reduce_any(state["done"]), lambda: leave(state, answers), lambda: (state, answers)
        )
        return t + 1, state, answers

    state, answers = leave(state, answers)
    loose = {k: tf.TensorShape([None, *v.shape[1:]]) for k, v in state.items()}
    _, state, answers = tf.while_loop(
        lambda t, state, _: (t < steps) & (tf.shape(state["index"])[0] > 0),
        body,
        (tf.constant(0), state, answers),
        shape_invariants=(tf.TensorShape([]), loose, answers.shape),
        parallel_iterations=1,
    )
    return tf.tensor_scatter_nd_update(answers, state["index"][:, None], state["answer"])
