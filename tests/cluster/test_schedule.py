"""Which worker takes which job."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.jobs import Job
from cluster.workers.schedule import Queue


def job(name: str, group: str) -> Job:
    return Job(name, {}, {}, name, group, (), {})


def test_jobs_of_a_clip_stay_with_their_worker_in_order() -> None:
    queue = Queue([job("a1", "a"), job("b1", "b"), job("a2", "a"), job("b2", "b")])
    taken = [queue.take(worker) for worker in ("one", "two", "two", "one")]
    assert [found.name for found in taken if found] == ["a1", "b1", "b2", "a2"]
    assert queue.take("one") is None


def test_a_worker_with_nothing_left_takes_the_last_of_the_largest_group() -> None:
    queue = Queue([job("a1", "a"), *(job(f"b{number}", "b") for number in range(4))])
    assert [queue.take(worker).name for worker in ("one", "two", "one")] == ["a1", "b0", "b3"]  # type: ignore[union-attr]
    assert queue.take("two").name == "b1"  # type: ignore[union-attr]


def test_a_lost_workers_clip_is_anybodys() -> None:
    queue = Queue([job("a1", "a"), job("a2", "a"), job("b1", "b"), job("b2", "b"), job("b3", "b")])
    lost = queue.take("one")
    assert lost
    assert queue.take("two").name == "b1"  # type: ignore[union-attr]
    queue.put(lost)
    queue.release("one")
    assert queue.take("three").name == "a2"  # type: ignore[union-attr]


@given(
    st.lists(st.sampled_from("abc")),
    st.lists(st.tuples(st.sampled_from(["one", "two", "three"]), st.booleans())),
)
@settings(max_examples=200, deadline=None)
def test_every_job_is_taken_once_however_often_it_is_put_back(
    groups: list[str], turns: list[tuple[str, bool]]
) -> None:
    jobs = [job(str(number), group) for number, group in enumerate(groups)]
    queue = Queue(jobs)
    done = []
    for worker, lost in turns:
        taken = queue.take(worker)
        if taken and lost:
            queue.release(worker)
            queue.put(taken)
        elif taken:
            done.append(taken.name)
    while taken := queue.take("last"):
        done.append(taken.name)
    assert sorted(done) == sorted(job.name for job in jobs)
    assert not len(queue)
