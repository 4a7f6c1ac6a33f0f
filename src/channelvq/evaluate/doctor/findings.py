"""What the doctor's figures mean and what helps, beside what the use alone shows (evaluate/findings.py).

The thresholds were set between runs known to be well and runs known to be ill (docs/decisions/0003 and docs/doctor.md).
"""

import math

from channelvq.evaluate.doctor.examine import DoctorReport
from channelvq.evaluate.findings import GUIDE, Finding, usage_findings

# Share of what log2 N bits could achieve for white Gaussian features (Shannon's bound), as variance that the codewords
# explain and as their norm. Good runs: 1.0 and more, and 0.95 and more; too little commitment: 0.5 and 0.45.
GAUSSIAN_SHARE = 0.7
# Share of the features' variance that the codewords keep. Convolutional channels keep 26 % although all codes are in
# use, and the decoder sees noise; patches keep 88 %, channels with a map of their own 95 % (decision 0014).
EMPTY = 0.5
DUPLICATE_SHARE = 0.01  # below one code in a hundred it costs less than 0.02 bits a token
SILENT_BITS = 1.0  # a token that says less than one bit where it is paid for with log2 N
ENOUGH_IMAGES = 16  # to judge single tokens: fewer may have the same code by chance, and a variance far from the true


def findings(report: DoctorReport) -> list[Finding]:
    """All that the figures give cause to say, the worst first; empty for a healthy tokenizer."""
    causes = [*usage_findings(report.usage, report.codebook_size), *_error(report)]
    made = [
        *causes,
        *_empty(report, causes),
        *_norms(report),
        *_duplicates(report),
        *_silent(report),
        *_worse_than_mean(report),
    ]
    return sorted(made, key=lambda finding: ("problem", "warning", "note").index(finding.level))


def verdict(found: list[Finding]) -> str:
    """One line: "healthy", or how much was found."""
    counts = {level: sum(f.level == level for f in found) for level in ("problem", "warning")}
    parts = [f"{count} {level}{'s' if count > 1 else ''}" for level, count in counts.items() if count]
    if parts:
        return " and ".join(parts)
    return "healthy, as far as so few tokens can tell" if found else "healthy"


def _error(report: DoctorReport) -> list[Finding]:
    most = 1 - GAUSSIAN_SHARE * (1 - report.gaussian_error)
    if not report.relative_error > most:
        return []
    measured = (
        f"quantization error {report.relative_error:.2f} of the features' variance; {report.gaussian_error:.2f} is "
        f"possible for white noise, more than {most:.2f} is high"
    )
    return [_ERROR.on(measured)]


def _empty(report: DoctorReport, causes: list[Finding]) -> list[Finding]:
    """causes: low use, or codewords far from the features, which explain a large error by themselves."""
    kept = 1 - report.relative_error
    explained = any(cause.level != "note" for cause in causes)
    if not kept < EMPTY or report.num_images < ENOUGH_IMAGES or explained:
        return []
    dims = float(report.position_dimensions.median())
    return [
        _EMPTY.on(
            f"{report.usage.use:.0%} of the codes are in use, but they keep {kept:.0%} of the features' variance: a "
            f"{report.position} varies in {dims:.0f} effective dimensions, {math.log2(report.codebook_size):.0f} bits "
            "are shared out to all of them"
        )
    ]


def _norms(report: DoctorReport) -> list[Finding]:
    reachable = (1 - report.gaussian_error) ** 0.5
    if not report.code_norm < GAUSSIAN_SHARE * reachable * report.feature_norm:
        return []
    ratio = report.code_norm / report.feature_norm
    return [
        _NORMS.on(f"codewords are {ratio:.2f} times as long as features; {reachable:.2f} is reached by white noise")
    ]


def _duplicates(report: DoctorReport) -> list[Finding]:
    count, size = len(report.duplicates), report.codebook_size
    return [_DUPLICATES.on(f"{count} of {size} codes repeat another")] if count >= DUPLICATE_SHARE * size else []


def _silent(report: DoctorReport) -> list[Finding]:
    which = (report.position_bits < SILENT_BITS).nonzero().flatten().tolist()
    if not which or report.num_images < ENOUGH_IMAGES:
        return []
    return [_SILENT.on(f"{_listed(report.position, which)} carry less than {SILENT_BITS:g} bit")]


def _worse_than_mean(report: DoctorReport) -> list[Finding]:
    which = (report.position_errors >= 1).nonzero().flatten().tolist()
    if not which or report.num_images < ENOUGH_IMAGES:
        return []
    return [_NOISE.on(f"{_listed(report.position, which)} have a quantization error above their variance")]


def _listed(what: str, which: list[int]) -> str:
    shown = ", ".join(map(str, which[:8])) + (", ..." if len(which) > 8 else "")
    plural = "es" if what == "patch" else "s"
    return f"{len(which)} {what}{plural} ({shown})"


_ERROR = Finding(
    "high quantization error",
    "warning",
    "Codewords are far from the features: the decoder sees little of what the encoder found.",
    "If use is low, mend that first. Else a larger model.quantizer.codebook_size, smaller codewords (a smaller "
    f"latent size), a heavier commitment (model.quantizer.beta near 0.25) or longer training; {GUIDE}.",
)
_EMPTY = Finding(
    "used but empty",
    "warning",
    "Codes are chosen often and say little: a codeword stands for more independent numbers than its bits can tell, so "
    "most of what the decoder gets is noise. Full use hides it.",
    "Give each token few numbers that matter: a linear map for each token over one shared codebook, started from the "
    "data (model.quantizer.kind=simvq-tokenwise with model.network.kind=linear, as in small/tokens-channel); or more "
    "tokens, or a smaller latent size. See docs/decisions/0014-channel-tokens-from-a-linear-coder.md.",
)
_NORMS = Finding(
    "features run away",
    "warning",
    "The encoder's features have grown past the codewords, which no longer follow: too little commitment.",
    "Raise model.quantizer.beta towards 0.25 or lower objective.pixel_weight, and start from the data "
    f"(model.quantizer.start=data); {GUIDE}.",
)
_DUPLICATES = Finding(
    "duplicate codes",
    "warning",
    "Codes this close stand for the same features; all but one of them are wasted.",
    "Start from more varied data (model.quantizer.start=data, a larger objective.start_images), or take a smaller "
    "model.quantizer.codebook_size.",
)
_SILENT = Finding(
    "silent tokens",
    "warning",
    "Tokens that are nearly always the same cost log2 N bits and say almost nothing.",
    "Fewer tokens (model.latent_channels), a lower nested.alpha so that late channels are trained more often, or "
    "longer training.",
)
_NOISE = Finding(
    "tokens worse than their mean",
    "warning",
    "Here a constant codeword would be closer to the features than the chosen one: the codebook has no code for them.",
    f"As for low use: model.quantizer.start=data and model.quantizer.beta near 0.25; {GUIDE}.",
)
