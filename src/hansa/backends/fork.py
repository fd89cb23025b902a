"""To begin a run with the state of another one."""

from dataclasses import replace

from hansa.aggregation.matrix import Matrix
from hansa.contribution import Values
from hansa.errors import PrivacyError, StudyError
from hansa.methods.base import Method
from hansa.methods.course import Course, Progress
from hansa.run import UNDER_WAY, Run


def forked(course: Course, run: Run, fork: Run) -> Progress:
    """The progress to begin a run with; the run gets what the parties of the other one remember. Raises StudyError if
    its model is another one; PrivacyError if the rounds of both share their noise."""
    begun, kept, there = course.begin(), fork.progress, fork.federation
    if kept is None or kept.parameters.shape != begun.parameters.shape:
        remedy = "Fork with the task and the features that it was started with"
        raise StudyError("the run to fork has no model of this shape", remedy=remedy)
    # Taken up, the noise would cancel out between the two runs; begun anew, no event covers both.
    if all(any(isinstance(s, Matrix) for s in one.stages) for one in (there.aggregation, course.aggregation)):
        what = "the rounds of the run to fork share their noise, and so would the fork's: what hides them would not"
        raise PrivacyError(what, remedy="Run the study from its beginning, or put gaussian in the fork's aggregation")
    states = {**begun.states, "moments": kept.states["moments"]}
    theirs, ours = kept.states["train"], begun.states["train"]
    if not _alike(there.method, course.method):  # what other methods know means nothing to this one
        values = {**ours.values, "parameters": theirs.values["parameters"]}
        states["train"] = replace(ours, round=theirs.round, values=Values(values))
    else:  # it goes on as it would have
        run.memories, states["train"] = fork.memories, theirs
        if UNDER_WAY in kept.states:
            states[UNDER_WAY] = kept.states[UNDER_WAY]
        if there.aggregation == course.aggregation:
            states["stages"] = kept.states["stages"]
        else:
            run.memories = {
                party: Values({n: v for n, v in memory.items() if not n.startswith("stages.")})
                for party, memory in run.memories.items()
            }
    return course.again(replace(kept, states=states, best=None, since=0, reason=""))


def _alike(there: Method, here: Method) -> bool:
    """Whether what one method knows means the same to the other: but for rates, batches and rounds."""
    free = dict.fromkeys(("lr", "epochs", "batch_size", "shuffle"))

    def kept(method: Method) -> Method:
        parts = {name: part for name in ("local", "server") if (part := getattr(method, name, None)) is not None}
        return method.model_copy(update={name: part.model_copy(update=free) for name, part in parts.items()})

    return kept(there) == kept(here)
