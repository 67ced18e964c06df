"""Several threads at once, for tests of what they share."""

import threading
from collections.abc import Callable, Iterable


def in_threads(work: Callable, arguments: Iterable[tuple]) -> None:
    """`work(*each)` in a thread of its own for each of the arguments; returns when all are done.

    What one of them raises is raised here.
    """
    raised: list[BaseException] = []

    def run(*each: object) -> None:
        try:
            work(*each)
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=each) for each in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]
