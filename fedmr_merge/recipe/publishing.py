"""The `publish` stages of a run: written to its folder, and pushed where they name a repository.

A push that fails is reported at the end of the run, with the command that finishes it: it neither stops the training
nor loses anything. Until a branch is on the Hub, its files wait in the run's `unpushed/`.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedmr_merge.errors import HubError, PushError, UnreachedError
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.protocol import State
from fedmr_merge.publish.hub import check_push, push_to_hub
from fedmr_merge.publish.publication import write_publication
from fedmr_merge.publish.push_options import PushOptions
from fedmr_merge.recipe.stages import Publish, Stage
from fedmr_merge.runs.names import COHORT, GLOBAL, UNPUSHED
from fedmr_merge.runs.record import read_run


def check_pushes(stages: Sequence[Stage]) -> None:
    """Check the names, the token and its permissions for the pushes of a run, before hours of training.

    Raises HubError for what the Hub would refuse at the end. A Hub that does not answer now may answer then.
    """
    for repo, private in {(stage.repo, stage.private): None for stage in stages if isinstance(stage, Publish)}:
        if repo is not None:
            with contextlib.suppress(UnreachedError):
                check_push(repo, PushOptions(private=private))


class Publisher:
    """Publishes the states of one run."""

    def __init__(self, run: Path, federation: Federation, stages: Sequence[Stage]) -> None:
        self._run, self._federation, self._stages = run, federation, stages
        self._failed: dict[str, str] = {}  #: the command that finishes a push → why it failed

    def stage(self, stage: Publish, state: State, round: int) -> str:
        """Do a `publish` stage after a round; returns what was done."""
        target = self._run / (COHORT if stage.what == "cohort" else GLOBAL)
        self._write(target, stage, state, round)
        held = {"global": "the global model", "cohort": "the cohort", "both": "the global model and the cohort"}
        done = f"{target} holds {held[stage.what]}, with a card"
        return done if stage.repo is None else f"{done}; {self._push(target, stage, stage.repo, None)}"

    def is_due(self, position: int, round: int) -> bool:
        """Return whether a later stage publishes the models after this round of the stage at `position`."""
        return bool(self._due(position, round))

    def after_round(self, position: int, state: State, round: int) -> Iterator[str]:
        """Push the branches that later stages want after this round of the stage at `position`.

        A round has no card where it was not evaluated: nothing was due after it when it was run.
        """
        due = self._due(position, round)
        if due and self._federation.task.decisive.key not in read_run(self._run).metrics[-1]:
            yield "not published, as the global model was not evaluated after this round"
            return
        for stage in due:
            branch = f"round-{round:06d}"
            target = self._run / UNPUSHED / branch
            target.parent.mkdir(exist_ok=True)
            self._write(target, stage, state, round)
            yield self._push_branch(target, stage)

    def left_over(self, position: int) -> Iterator[str]:
        """Push what an earlier process could not, now that the run is resumed in the stage at `position`."""
        waiting = sorted((self._run / UNPUSHED).glob("round-*"))
        for stage in [stage for stage in self._later(position) if stage.every is not None][:1]:
            for target in waiting:
                yield self._push_branch(target, stage)

    def finish(self) -> None:
        """Raise PushError when a push failed; its hint holds the commands that finish what was begun."""
        if self._failed:
            commands = " && ".join(self._failed)
            raise PushError(
                f"the run is complete, but not all of it is on the Hub: {next(iter(self._failed.values()))}",
                hint=f"everything is on disk; once that is fixed, this finishes it: {commands}",
            )

    def _due(self, position: int, round: int) -> list[Publish]:
        return [stage for stage in self._later(position) if stage.every is not None and round % stage.every == 0]

    def _later(self, position: int) -> list[Publish]:
        return [stage for stage in self._stages[position + 1 :] if isinstance(stage, Publish)]

    def _write(self, target: Path, stage: Publish, state: State, round: int) -> None:
        write_publication(
            self._run,
            target,
            self._federation,
            state,
            round,
            what=stage.what,
            # A private run's epsilon counts on nobody knowing who took part.
            client_information=stage.client_information and self._federation.training.privacy is None,
        )

    def _push_branch(self, target: Path, stage: Publish) -> str:
        assert stage.repo is not None  # the schema wants it beside `every`
        message = self._push(target, stage, stage.repo, target.name)
        if self._command(target, stage, stage.repo, target.name) not in self._failed:
            shutil.rmtree(target)
            with contextlib.suppress(OSError):  # others wait there
                target.parent.rmdir()
        return message

    def _push(self, target: Path, stage: Publish, repo: str, branch: str | None) -> str:
        command = self._command(target, stage, repo, branch)
        self._failed.pop(command, None)
        try:
            result = push_to_hub(target, repo, PushOptions(private=stage.private, revision=branch))
        except HubError as error:
            self._failed[command] = str(error)
            return f"not pushed: {error}"
        return f"{'is on the Hub already' if result.unchanged else 'pushed'}: {result.url}"

    def _command(self, target: Path, stage: Publish, repo: str, branch: str | None) -> str:
        return PushOptions(private=stage.private, revision=branch).command(target, repo)
