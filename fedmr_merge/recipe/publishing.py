"""The `publish` stages of a run: written to its folder, and pushed where they name a repository.

A push that fails is reported at the end of the run, with the command that finishes it: it neither stops the training
nor loses anything. Until a push is done, its files wait in the run's `unpushed/POSITION/OWNER/NAME/BRANCH`, which says
where they go however the recipe is changed; those of the last stage wait where the stage wrote them.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedmr_merge.checkpoint.copying import link_or_copy
from fedmr_merge.checkpoint.writer import remove_leftover, staged_output
from fedmr_merge.errors import HubError, PushError, UnreachedError
from fedmr_merge.federated.federation import Federation
from fedmr_merge.federated.protocol import State
from fedmr_merge.publish.card import CARD_FILE
from fedmr_merge.publish.hub import check_push, push_to_hub
from fedmr_merge.publish.publication import Contents, write_publication
from fedmr_merge.publish.push_options import PushOptions
from fedmr_merge.recipe.stages import Publish, Stage, TrainingStage
from fedmr_merge.runs.names import COHORT, GLOBAL, UNPUSHED
from fedmr_merge.runs.record import read_run

_MAIN = "main"
_PUSHED = ".pushed"  #: in `unpushed/`, what is being removed


def check_pushes(stages: Sequence[Stage]) -> None:
    """Check the names, the token and its permissions for the pushes of a run, before hours of training.

    Raises HubError for what the Hub would refuse at the end. A Hub that does not answer now may answer then.
    """
    for repo, private in {(stage.repo, stage.private): None for stage in stages if isinstance(stage, Publish)}:
        if repo is not None:
            with contextlib.suppress(UnreachedError):
                check_push(repo, PushOptions(private=private))


@dataclass(frozen=True, order=True)
class _Push:
    """A push of a `publish` stage: the position of the stage in the recipe, and where its files go."""

    position: int  #: from 0
    repo: str
    branch: str = _MAIN

    def waiting(self, run: Path) -> Path:
        """Return the folder in which the files wait for the Hub."""
        return run / UNPUSHED / str(self.position + 1) / self.repo / self.branch

    def follows(self, other: _Push) -> bool:
        """Return whether its files go to the same branch as those of another push, after them."""
        return (self.repo, self.branch) == (other.repo, other.branch) and self.position > other.position


class Publisher:
    """Publishes the states of one run."""

    def __init__(self, run: Path, federation: Federation, stages: Sequence[Stage]) -> None:
        self._run, self._federation, self._stages = run, federation, stages
        self._failed: dict[_Push, str] = {}  #: why each push failed

    def stage(self, position: int, stage: Publish, state: State, round: int) -> str:
        """Do the `publish` stage at a position after a round; returns what was done."""
        target = self._folder(stage)
        self._write(target, position, stage, state, round)
        held = {"global": "the global model", "cohort": "the cohort", "both": "the global model and the cohort"}
        done = f"{target} holds {held[stage.what]}, with a card"
        if stage.repo is None:
            return done
        push = _Push(position, stage.repo)
        self._forget(push)  # an earlier process's copy of what was just written
        message = self._push(push, target)
        if push in self._failed and not self._is_last(position):
            self._keep(push, target)
        return f"{done}; {message}"

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
        for later, stage in due.items():
            assert stage.repo is not None  # the schema wants it beside `every`
            push = _Push(later, stage.repo, f"round-{round:06d}")
            self._write(push.waiting(self._run), later, stage, state, round)
            yield self._push(push, push.waiting(self._run))

    def left_over(self) -> Iterator[str]:
        """Push what earlier processes could not, each folder to the repository that it was written for."""
        shutil.rmtree(self._run / UNPUSHED / _PUSHED, ignore_errors=True)
        for staged in (self._run / UNPUSHED).glob("*/*/*/.*"):
            remove_leftover(staged)
        yield from self._adopt_older()
        for push in self._waiting():
            folder = push.waiting(self._run)
            if any(stage.repo == push.repo for stage in self._publish_stages.values()):
                yield self._push(push, folder)
            else:
                reason = f"no `publish` stage of the recipe names {push.repo} any more"
                yield f"not pushed: {reason}; push {folder} by hand, or remove it"
        self._tidy()

    def _adopt_older(self) -> Iterator[str]:
        """Find out where the branches go that version 0.1.0 left: it did not record their repository."""
        every = {stage.repo: position for position, stage in self._publish_stages.items() if stage.every is not None}
        for folder in sorted((self._run / UNPUSHED).glob("round-*")):
            if len(every) == 1:
                [(repo, position)] = every.items()
                assert repo is not None  # the schema wants it beside `every`
                waiting = _Push(position, repo, folder.name).waiting(self._run)
                waiting.parent.mkdir(parents=True, exist_ok=True)
                folder.rename(waiting)
            else:
                yield f"not pushed: it is not known to which repository; push {folder} by hand, or remove it"

    def finish(self) -> None:
        """Raise PushError when a push failed; its hint holds the commands that finish what was begun."""
        if self._failed:
            failed = sorted(self._failed)
            commands = " && ".join(map(self._command, failed))
            raise PushError(
                f"the run is complete, but not all of it is on the Hub: {self._failed[failed[0]]}",
                hint=f"everything is on disk; once that is fixed, this finishes it: {commands}",
            )

    @property
    def _publish_stages(self) -> dict[int, Publish]:
        return {position: stage for position, stage in enumerate(self._stages) if isinstance(stage, Publish)}

    def _due(self, position: int, round: int) -> dict[int, Publish]:
        return {
            later: stage
            for later, stage in self._publish_stages.items()
            if later > position and stage.every is not None and round % stage.every == 0
        }

    def _is_last(self, position: int) -> bool:
        """Return whether the folder of a stage stays as it is, and a run that is resumed does the stage again."""
        return not any(isinstance(stage, TrainingStage | Publish) for stage in self._stages[position + 1 :])

    def _folder(self, stage: Publish) -> Path:
        return self._run / (COHORT if stage.what == "cohort" else GLOBAL)

    def _write(self, target: Path, position: int, stage: Publish, state: State, round: int) -> None:
        # A private run's epsilon counts on nobody knowing who took part.
        client_information = stage.client_information and self._federation.training.privacy is None
        contents = Contents(position + 1, stage.what, client_information)
        write_publication(self._run, target, self._federation, state, round, contents)

    def _push(self, push: _Push, folder: Path) -> str:
        """Push a folder, after what waits for the same branch: it would otherwise replace these newer models later."""
        messages = []
        for earlier in filter(push.follows, self._waiting()):
            messages.append(self._send(earlier, earlier.waiting(self._run)))
            if earlier in self._failed:
                self._failed[push] = self._failed[earlier]
                return "; ".join(messages)
        return "; ".join([*messages, self._send(push, folder)])

    def _send(self, push: _Push, folder: Path) -> str:
        self._failed.pop(push, None)
        try:
            result = push_to_hub(folder, push.repo, self._options(push))
        except HubError as error:
            self._failed[push] = str(error)
            return f"not pushed: {error}"
        self._forget(push)
        return f"{'is on the Hub already' if result.unchanged else 'pushed'}: {result.url}"

    def _options(self, push: _Push) -> PushOptions:
        private = any(stage.private for stage in self._publish_stages.values() if stage.repo == push.repo)
        return PushOptions(private=private, revision=None if push.branch == _MAIN else push.branch)

    def _command(self, push: _Push) -> str:
        waiting = push.waiting(self._run)
        if not waiting.exists():
            return self._options(push).command(self._folder(self._publish_stages[push.position]), push.repo)
        # Else a run that is resumed would push it once more, over what was pushed after it.
        return f"{self._options(push).command(waiting, push.repo)} && rm -r {shlex.quote(str(waiting))}"

    def _waiting(self) -> list[_Push]:
        """Return what `unpushed/` holds, in the order of the stages."""
        place, found = self._run / UNPUSHED, []
        for folder in place.glob("*/*/*/*"):
            position, owner, name, branch = folder.relative_to(place).parts
            if position.isdecimal() and folder.is_dir() and not branch.startswith("."):  # those are being written
                found.append(_Push(int(position) - 1, f"{owner}/{name}", branch))
        return sorted(found)

    def _keep(self, push: _Push, folder: Path) -> None:
        """Keep a folder that could not be pushed, as later stages replace it. Its models take no room."""
        with staged_output(push.waiting(self._run)) as staging:
            shutil.copytree(folder, staging, copy_function=_keep_file)

    def _forget(self, push: _Push) -> None:
        """Remove what waits for a push, and the folders around it that are empty then."""
        waiting, pushed = push.waiting(self._run), self._run / UNPUSHED / _PUSHED
        if waiting.exists():
            shutil.rmtree(pushed, ignore_errors=True)
            waiting.rename(pushed)  # at once, so that no half of it is ever pushed
            shutil.rmtree(pushed)
            self._tidy()

    def _tidy(self) -> None:
        """Remove the folders in which nothing waits."""
        place = self._run / UNPUSHED
        for folder in (*place.glob("*/*/*"), *place.glob("*/*"), *place.glob("*"), place):
            with contextlib.suppress(OSError):  # others wait there
                folder.rmdir()


def _keep_file(source: str, target: str) -> None:
    if source.endswith(CARD_FILE):  # people edit it
        shutil.copyfile(source, target)
    else:
        link_or_copy(source, target)
