"""A cluster of processes on this machine: each shard's attempt is a process of its own, which a test may kill."""

import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence

from harvester.engines.tasks import ShardCalls, TaskPlan, TaskResult, run_shard
from harvester.run import job

AfterStart = Callable[[Sequence["subprocess.Popen[bytes]"]], None]


class ProcessCluster:
    """Runs shards side by side. after_start: called when all first attempts were started; may kill some.

    A process that is killed is followed by another attempt, as Spark does it. attempts: made so far.
    """

    def __init__(self, after_start: AfterStart = lambda _: None) -> None:
        self.attempts = 0
        self._after_start = after_start

    def __call__(self, plan: TaskPlan, shards: Sequence[ShardCalls]) -> list[TaskResult]:
        first = [self.start(plan, shard) for shard in shards]
        self._after_start(first)
        return [self._result(plan, shard, process) for shard, process in zip(shards, first, strict=True)]

    def start(self, plan: TaskPlan, shard: ShardCalls) -> "subprocess.Popen[bytes]":
        self.attempts += 1
        process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert process.stdin is not None
        process.stdin.write(pickle.dumps((plan, shard, self.attempts)))
        process.stdin.close()
        return process

    def _result(self, plan: TaskPlan, shard: ShardCalls, process: "subprocess.Popen[bytes]") -> TaskResult:
        assert process.stdout is not None
        with process:
            text = process.stdout.read()
        if process.returncode < 0:
            return self._result(plan, shard, self.start(plan, shard))
        assert process.returncode == 0
        return TaskResult.parse(text.decode())


if __name__ == "__main__":
    plan, shard, attempt = pickle.load(sys.stdin.buffer)
    print(run_shard(plan, shard, attempt, job.run).to_json())
