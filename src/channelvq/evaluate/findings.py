"""What the use of a codebook shows, in words: for the doctor, and for every evaluation of a training run.

The thresholds were set between runs known to be well and runs known to be ill (docs/decisions/0003 and docs/doctor.md).
"""

from dataclasses import dataclass, replace
from typing import Literal

from channelvq.quantize.usage import UsageReport

ENOUGH_TOKENS = 8  # times N: codes drawn at random are then all used to 99.97 %, so a code that did not come is dead
# Shares of the use that codes drawn at random would have. The one start that failed used 0.5 %; the wrong commitment
# weights 48 to 67 %, patch-wise runs 23 to 68 %; the bundled tokenizer 79 % on scenes, 89 % on photographs.
COLLAPSED_USE = 0.1
LOW_USE = 0.7
UNEVEN = 0.4  # perplexity over codes in use: 0.46 to 0.77 in the runs that went well, 0.18 to 0.39 in the others
GUIDE = "see docs/decisions/0003-what-keeps-the-codebook-alive.md"


@dataclass(frozen=True)
class Finding:
    """Something that ails a tokenizer, or may.

    level: "problem" (it does not work), "warning" (it could be better) or "note". meaning, remedy: of all findings of
    this name. measured: what gave cause to it here.
    """

    name: str
    level: Literal["problem", "warning", "note"]
    meaning: str
    remedy: str
    measured: str = ""

    def on(self, measured: str) -> "Finding":
        """The same, on what was measured."""
        return replace(self, measured=measured)


def usage_findings(usage: UsageReport, codebook_size: int) -> list[Finding]:
    """What the use of the codebook alone shows; also for the figures of a training run's evaluation."""
    made: list[Finding] = []
    measured = (
        f"{usage.use:.1%} of {codebook_size} codes are in use, random ones would be to {usage.use_if_uniform:.1%}"
    )
    enough = usage.tokens >= ENOUGH_TOKENS * codebook_size
    if usage.use < COLLAPSED_USE * usage.use_if_uniform:
        return [_COLLAPSED.on(measured)]  # that much is certain from a few images
    if enough and usage.use < LOW_USE * usage.use_if_uniform:
        made.append(_LOW_USE.on(measured))
    elif usage.perplexity < UNEVEN * usage.use * codebook_size:
        used = round(usage.use * codebook_size)
        made.append(_UNEVEN.on(f"perplexity {usage.perplexity:.0f} of {used} codes in use"))
    if not enough:
        wanted = ENOUGH_TOKENS * codebook_size
        made.append(_FEW.on(f"{usage.tokens} tokens, {wanted} (8 N) tell which codes are dead"))
    return made


_COLLAPSED = Finding(
    "collapsed codebook",
    "problem",
    "Nearly all codes are dead: a token says far less than it is paid for, and training on seldom revives them.",
    f"Train anew with model.quantizer.start=data and model.quantizer.beta near 0.25; {GUIDE}.",
)
_LOW_USE = Finding(
    "low use",
    "warning",
    "Part of the codebook is dead, or these images are simpler than those of the training.",
    "Look at images like those of the training first; then model.quantizer.beta near 0.25, a lower "
    f"train.learning_rate, model.axis=channel, or a smaller model.quantizer.codebook_size; {GUIDE}.",
)
_UNEVEN = Finding(
    "uneven use",
    "warning",
    "A few codes do most of the work; a smaller codebook would say nearly as much.",
    f"model.quantizer.beta near 0.25 and a lower train.learning_rate; {GUIDE}.",
)
_FEW = Finding(
    "too few images to tell",
    "note",
    "A code that did not come may be rare instead of dead, so that low use is not judged.",
    "Give more images.",
)
