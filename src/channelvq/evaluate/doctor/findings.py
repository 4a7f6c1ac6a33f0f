"""What the doctor's figures mean and what helps: each finding with its measure, its meaning and its remedy by name.

The thresholds were set between runs known to be well and runs known to be ill (docs/decisions/0003 and docs/doctor.md).
"""

from dataclasses import dataclass
from typing import Literal

from channelvq.evaluate.doctor.examine import DoctorReport
from channelvq.quantize.usage import UsageReport

Level = Literal["problem", "warning", "note"]

ENOUGH_TOKENS = 8  # times N: codes drawn at random are then all used to 99.97 %, so a code that did not come is dead
# Shares of the use that codes drawn at random would have. The one start that failed used 0.5 %; the wrong commitment
# weights 48 to 67 %, patch-wise runs 23 to 68 %; the bundled tokenizer 79 % on scenes, 89 % on photographs.
COLLAPSED_USE = 0.1
LOW_USE = 0.7
UNEVEN = 0.4  # perplexity over codes in use: 0.46 to 0.77 in the runs that went well, 0.18 to 0.39 in the others
# Share of what log2 N bits could achieve for white Gaussian features (Shannon's bound), as variance that the codewords
# explain and as their norm. Good runs: 1.0 and more, and 0.95 and more; too little commitment: 0.5 and 0.45.
GAUSSIAN_SHARE = 0.7
DUPLICATE_SHARE = 0.01  # below one code in a hundred it costs less than 0.02 bits a token
SILENT_BITS = 1.0  # a token that says less than one bit where it is paid for with log2 N
ENOUGH_IMAGES = 16  # to judge single tokens: fewer may have the same code by chance, and a variance far from the true
_GUIDE = "see docs/decisions/0003-what-keeps-the-codebook-alive.md"


@dataclass(frozen=True)
class Finding:
    """One thing found. level: "problem" (it does not work), "warning" (it could be better) or "note"."""

    name: str
    level: Level
    measured: str
    meaning: str
    remedy: str


def findings(report: DoctorReport) -> list[Finding]:
    """All that the figures give cause to say, the worst first; empty for a healthy tokenizer."""
    found = [
        *usage_findings(report.usage, report.codebook_size),
        *_error(report),
        *_norms(report),
        *_duplicates(report),
        *_silent(report),
        *_worse_than_mean(report),
    ]
    return sorted(found, key=lambda finding: ("problem", "warning", "note").index(finding.level))


def verdict(found: list[Finding]) -> str:
    """One line: "healthy", or how much was found."""
    counts = {level: sum(f.level == level for f in found) for level in ("problem", "warning")}
    parts = [f"{count} {level}{'s' if count > 1 else ''}" for level, count in counts.items() if count]
    if parts:
        return " and ".join(parts)
    return "healthy, as far as so few tokens can tell" if found else "healthy"


def usage_findings(usage: UsageReport, codebook_size: int) -> list[Finding]:
    """What the use of the codebook alone shows; also for the figures of a training run's evaluation."""
    found = []
    measured = (
        f"{usage.use:.1%} of {codebook_size} codes are in use, random ones would be to {usage.use_if_uniform:.1%}"
    )
    enough = usage.tokens >= ENOUGH_TOKENS * codebook_size
    if usage.use < COLLAPSED_USE * usage.use_if_uniform:
        return [_COLLAPSED(measured)]  # that much is certain from a few images
    if enough and usage.use < LOW_USE * usage.use_if_uniform:
        found.append(_LOW_USE(measured))
    elif usage.perplexity < UNEVEN * usage.use * codebook_size:
        used = round(usage.use * codebook_size)
        found.append(_UNEVEN(f"perplexity {usage.perplexity:.0f} of {used} codes in use"))
    if not enough:
        wanted = ENOUGH_TOKENS * codebook_size
        found.append(_FEW(f"{usage.tokens} tokens, {wanted} (8 N) tell which codes are dead"))
    return found


def _error(report: DoctorReport) -> list[Finding]:
    most = 1 - GAUSSIAN_SHARE * (1 - report.gaussian_error)
    if not report.relative_error > most:
        return []
    measured = (
        f"quantization error {report.relative_error:.2f} of the features' variance; {report.gaussian_error:.2f} is "
        f"possible for white noise, more than {most:.2f} is high"
    )
    return [_ERROR(measured)]


def _norms(report: DoctorReport) -> list[Finding]:
    reachable = (1 - report.gaussian_error) ** 0.5
    if not report.code_norm < GAUSSIAN_SHARE * reachable * report.feature_norm:
        return []
    ratio = report.code_norm / report.feature_norm
    return [_NORMS(f"codewords are {ratio:.2f} times as long as features; {reachable:.2f} is reached by white noise")]


def _duplicates(report: DoctorReport) -> list[Finding]:
    count, size = len(report.duplicates), report.codebook_size
    return [_DUPLICATES(f"{count} of {size} codes repeat another")] if count >= DUPLICATE_SHARE * size else []


def _silent(report: DoctorReport) -> list[Finding]:
    which = (report.position_bits < SILENT_BITS).nonzero().flatten().tolist()
    if not which or report.num_images < ENOUGH_IMAGES:
        return []
    return [_SILENT(f"{_listed(report.position, which)} carry less than {SILENT_BITS:g} bit")]


def _worse_than_mean(report: DoctorReport) -> list[Finding]:
    which = (report.position_errors >= 1).nonzero().flatten().tolist()
    if not which or report.num_images < ENOUGH_IMAGES:
        return []
    return [_NOISE(f"{_listed(report.position, which)} have a quantization error above their variance")]


def _listed(what: str, which: list[int]) -> str:
    shown = ", ".join(map(str, which[:8])) + (", ..." if len(which) > 8 else "")
    plural = "es" if what == "patch" else "s"
    return f"{len(which)} {what}{plural} ({shown})"


@dataclass(frozen=True)
class _Kind:
    """A finding but for what was measured."""

    name: str
    level: Level
    meaning: str
    remedy: str

    def __call__(self, measured: str) -> Finding:
        return Finding(self.name, self.level, measured, self.meaning, self.remedy)


_COLLAPSED = _Kind(
    "collapsed codebook",
    "problem",
    "Nearly all codes are dead: a token says far less than it is paid for, and training on seldom revives them.",
    f"Train anew with model.quantizer.start=data and model.quantizer.beta near 0.25; {_GUIDE}.",
)
_LOW_USE = _Kind(
    "low use",
    "warning",
    "Part of the codebook is dead, or these images are simpler than those of the training.",
    "Look at images like those of the training first; then model.quantizer.beta near 0.25, a lower "
    f"train.learning_rate, model.axis=channel, or a smaller model.quantizer.codebook_size; {_GUIDE}.",
)
_UNEVEN = _Kind(
    "uneven use",
    "warning",
    "A few codes do most of the work; a smaller codebook would say nearly as much.",
    f"model.quantizer.beta near 0.25 and a lower train.learning_rate; {_GUIDE}.",
)
_FEW = _Kind(
    "too few images to tell",
    "note",
    "A code that did not come may be rare instead of dead, so that low use is not judged.",
    "Give more images.",
)
_ERROR = _Kind(
    "high quantization error",
    "warning",
    "Codewords are far from the features: the decoder sees little of what the encoder found.",
    "If use is low, mend that first. Else a larger model.quantizer.codebook_size, smaller codewords (a smaller "
    f"latent size), a heavier commitment (model.quantizer.beta near 0.25) or longer training; {_GUIDE}.",
)
_NORMS = _Kind(
    "features run away",
    "warning",
    "The encoder's features have grown past the codewords, which no longer follow: too little commitment.",
    "Raise model.quantizer.beta towards 0.25 or lower objective.pixel_weight, and start from the data "
    f"(model.quantizer.start=data); {_GUIDE}.",
)
_DUPLICATES = _Kind(
    "duplicate codes",
    "warning",
    "Codes this close stand for the same features; all but one of them are wasted.",
    "Start from more varied data (model.quantizer.start=data, a larger objective.start_images), or take a smaller "
    "model.quantizer.codebook_size.",
)
_SILENT = _Kind(
    "silent tokens",
    "warning",
    "Tokens that are nearly always the same cost log2 N bits and say almost nothing.",
    "Fewer tokens (model.latent_channels), a lower nested.alpha so that late channels are trained more often, or "
    "longer training.",
)
_NOISE = _Kind(
    "tokens worse than their mean",
    "warning",
    "Here a constant codeword would be closer to the features than the chosen one: the codebook has no code for them.",
    f"As for low use: model.quantizer.start=data and model.quantizer.beta near 0.25; {_GUIDE}.",
)
